"""The words in which models announce an answer, in some 30 languages, as patterns without nested repetition."""

from __future__ import annotations

QUESTION_WORDS = r"Questions?|Q|Frage|Pregunta|Pergunta|Domanda|Вопрос|问题|問題|質問"

_WRAP = r"[ *_~`\"'\u201c\u201d\u201e\u00ab\u00bb>)\]}$]{0,6}"
_WORDS = r"(?:,? (?!(?:depends|whether|if|not|never|cannot|because|options|choices|nor)\b)[^\W\d_]{1,15}){0,3}?"
_BE = (
    r"is|are|was|would(?: \w{4,12})? be|will be|must(?: \w{4,12})? be|should(?: \w{4,12})? be|might be|may be"
    r"|could be"
    r"|can only be|can be|has to be|ought to be|seems(?: to be)?|appears to be|remains|becomes|equals|turns out to be"
    r"|comes out to(?: be)?|works out to(?: be)?"
)
_TO_WHAT = r"(?: (?:to|for|of|in)\b[^\n.:;=]{0,100}?)?"
_SIGN = r"->|=>|[:=\uff1a]|[\u2192\u21d2]|(?<= )[-\u2013\u2014](?= )"
_ENGLISH = (
    rf"(?<![^\W\d_])answers {_WRAP}are\b(?:{_WRAP}[:=\uff1a])?|(?<![^\W\d_])(?:answer"
    rf"|ans)(?:_\w{{1,15}})?(?![^\W_]){_WRAP}"
    rf"(?:{_WORDS}{_TO_WHAT}{_WRAP},? ?(?:(?:\b(?:{_BE})\b|(?<=[a-z])['\u2019]s\b)(?:{_WRAP}[:=\uff1a])?"
    rf"|\\?(?:{_SIGN}))|\.(?= ?\())"
)
_NOUNS = (  # "answer" in other languages
    r"antwort|réponse|reponse|respuesta|resposta|risposta|antwoord|odpowiedź|ответ"
    r"|відповідь|odpověď|odpoveď|odgovor|svaret|svar|vastaus"
    r"|απάντηση|válasz|răspuns(?:ul)?|cevap|yan\u0131t|đáp án|câu trả lời|trả lời"
    r"|jawaban(?:nya)?|jawapan(?:nya)?|sagot|jibu|(?:ال)?إجابة|(?:ال)?جواب|پاسخ"
    r"|ה?תשובה|उत्तर|जवाब|উত্তর|คำตอบ"
)
_VERBS = (
    r"ist|lautet|wäre|est|es|sería|é|seria|è|sarebbe|is|jest|to|это|\u2014 это|це|je|är|er|on|este"
    r"|είναι|az?|là|adalah|ialah|ay|ni|هي|هو|היא|הוא|है|হলো|คือ"
)
_OTHER = (
    rf"(?<![^\W\d_])(?:{_NOUNS})(?![^\W_]){_WRAP}"
    rf"(?: [^\W\d_]{{1,15}}){{0,3}}?{_WRAP} ?(?:(?<=[ *_])(?:{_VERBS})(?!\w)(?:{_WRAP}[:=\uff1a])?|{_SIGN})"
)
_EAST_ASIAN = (  # Chinese, Japanese, Korean: no blanks between words
    r"【(?:答案|解答|正解)】[:\uff1a]?|(?:正确的?选项|正確的?選項|答案|回答|解答|答え|正解|正答|答|정답|답변|답)"
    rf"{_WRAP}(?:选项|選項)?应?该?應?該?[】」』]?{_WRAP} ?"
    rf"(?:(?:是|为|為|选|選|は|은|는){{1,2}}[:\uff1a]?|[:=\uff1a])(?:选|選)?"
)
# "Answer" alone on a line, as a heading; "#### 5" at the end, as in GSM8K.
_HEADING = rf"^[ #*_>]{{0,8}}(?:the |my |final |correct |short ){{0,3}}(?:answer|{_NOUNS}|答案|정답|答え){_WRAP}(?=\n)"
_HASHES = r"####(?!#)(?=[^\n]{0,200}\s{0,3}\Z| ?[-+$(]{0,3}\d[\d,.]{0,30}%?(?:\n|\Z))"
ANSWER_IS = rf"{_ENGLISH}|{_OTHER}|{_EAST_ASIAN}|{_HEADING}|{_HASHES}"

_NOUN = (
    r"option|choice|statement|letter|response|selection|pick|one|alternative|solution|result|conclusion|guess"
    r"|prediction"
    r"|verdict|decision|opci\u00f3n|op\u00e7\u00e3o|opzione|alternativa|lösung|wahl|aussage|proposition|choix"
    r"|solución|risultato|вариант|выбор|optie"
)
# Words between "the answer is" and a letter. The article "a" only as a small letter: "a letra C", "la C".
FILLERS = (
    r"(?i:the|option|options|choice|letter|answer|statement|alternative|number|clearly|definitely|probably|likely"
    r"|most"
    r"|more|obviously|certainly|surely|simply|just|still|therefore|thus|hence|indeed|actually|then|in fact|of course"
    r"|that|be|to be|only|also|either|both|quite|evidently|undoubtedly|apparently|in my opinion|in my view|i think"
    r"|i believe|i guess|it is|it's|this is|that is|none other than|correct|right|best|final|given by|labeled"
    r"|labelled"
    r"|la|le|l|el|lo|il|o|os|der|die|das|den|de|het|buchstabe|antwort|opci\u00f3n|op\u00e7\u00e3o|opzione|lettre"
    r"|letra|lettera"
    r"|literal|opt|donc|daher|somit|deshalb|entonces|portanto|quindi|dunque|going to be|r\u00e9ponse|alternativa"
    r"|vari\u00e1vel|вариант|буква|под буквой|opsi|pilihan"
    r"|ph\u01b0\u01a1ng \u00e1n|opcja|se\u00e7enek"
    r"|الخيار|الحرف|विकल्प)(?!\w)|a(?= \w)|(?:选项|選項|選択肢|选择|選擇|选|選|第)"
)
JOIN = (
    r"(?: ?[,;/&+|] ?(?:(?i:and|or|and/or|und|oder|et|ou|y|e|or maybe|or possibly) )?"
    r"| ?(?i:and|or|and/or|und|oder|et|ou|y|o|e|ve|veya|en|of|и|или) (?:maybe |possibly |perhaps )?"
    r"| ?(?:或者|或|和|与|與|及|、|\uff0c|または|と|또는|및) ?|(?<=[)\]]) ?(?=[(\[]))"
)
# What is called by a letter: "Option C", "Antwort C".
CALLED = rf"(?:(?i:option|choice|answer|ans\.|letter|statement|{_NOUNS}|{_NOUN})[, ] ?|选项 ?|選項 ?|第 ?)"
NOT_BEFORE = (
    r"(?i:(?<!\w)(?:not|never|nor|neither|n't|exclud\w{0,5}|eliminat\w{0,5}|rul\w{1,3} out|reject\w{0,3}"
    r"|discard\w{0,3}"
    r"|except|instead of|rather than|over|unlike|nicht|keine?|pas|n\u00e3o|non|if|whether|cannot|can't|wouldn't|don't"
    r"|shouldn't|isn't|than|why)|n't|不是|不选|不選|排除|并非|не) ?"
    r"(?:(?:the|be|is|to|option|choice|answer|answers|options|letter|statement|only|just) ){0,3}"
)
WRONG_AFTER = (
    r"[\s,*]{0,3}(?i:(?:which |that |and \w{1,10} )?(?:(?:is|are|was|were|seems?|looks?|would be|can be|must be"
    r"|could be"
    r"|ist|sind|est|sont|es|son|\u00e9|s\u00e3o|\u00e8) (?:\w{1,12} ){0,2}?(?:wrong|incorrect|false|not\b|eliminated"
    r"|ruled|excluded|out\b"
    r"|invalid|untrue|implausible|impossible|unlikely|inaccurate|irrelevant|falsch|faux|fausse|incorrect\w|fals[ao]"
    r"|errad[ao]|discarded|rejected)|isn't|aren't|wasn't|weren't|can't be|cannot be|doesn't|does not|don't|do not"
    r"|fails?\b"
    r"|n'est pas|no es|n\u00e3o \u00e9|non \u00e8)|不对|不對|错|錯|不正确|不正確|可以排除|不是|неверн|не )"
)
RIGHT_AFTER = (
    r"[\s,]{0,2}(?i:(?:is|would be|seems(?: to be)?|looks(?: to be)?|must be|should be|appears(?: to be)?|sounds"
    r"|has to be|remains"
    r"|ist|est|es|\u00e9|\u00e8|is de|est\u00e1) (?:(?:the|a|la|die|der|das|a|le|il|clearly|definitely|indeed"
    r"|therefore|thus|also|most"
    r"|only|likely|probably|my|our|best|more|single|one|ri\u010dhtige) ){0,4}(?:correct|right|best|answer|accurate"
    r"|appropriate|suitable|winner"
    r"|solution|choice|option|richtig\w{0,2}|korrekt\w{0,2}|juste|exacte?|correct[aeo]?|corrett[ao]|corret[ao]"
    r"|respuesta|r\u00e9ponse"
    r"|resposta|risposta|antwort|juist|prawid\u0142owa|poprawna)\b(?! (?:about|that|in|only|if|when|but))"
    r"| (?:as |is )?the (?:only |most )?(?:correct|right|best|likely) (?:answer|option|choice|one)\b|fits best|fits"
    r"|it is\b|matches|wins|holds true)"
    r"|(?:项|項|选项|選項)?(?:是|为|為|が|は|가|는|이|은)? ?(?:正确|正確|正解|正しい|对的|對的|정답|맞)"
)
_VERB = (
    r"choos(?:e|ing)|chose|chosen|pick(?:ing|ed)?|select(?:ing|ed)?|go(?:ing)? (?:with|for)|went with|opt(?:ing)? for"
    r"|vote (?:for|is)|settle(?:d)? (?:on|for)|settling on|lean(?:ing)? towards?|stick(?:ing)? with|i(?:'d| would"
    r"|'ll| will)? (?:say|guess)|my guess"
    r"|conclude(?: that it(?:'s| is))?|narrow(?:ed|s)? (?:it )?down to|think(?: that)?(?: it(?:'s"
    r"| is))? (?=\W{0,4}(?-i:[A-Z])\b)|points? to|corresponds? to|match(?:es)? option"
    r"|elijo|escojo|selecciono|elegimos|w\u00e4hle|w\u00e4hlen|entscheide mich f\u00fcr|choisis|choisit"
    r"|s\u00e9lectionne|escolho|seleciono"
    r"|scelgo|kies|wybieram|выбираю|se\u00e7iyorum|memilih|ch\u1ecdn"
)
_ADJECTIVE = (
    r"correct|right|best|proper|appropriate|accurate|suitable|closest|nearest|valid|chosen|final|selected|my|only"
    r"|true|likely|matching"
    r"|richtige?r?|korrekte?|correcta?|correcte|juste|bonne|corretta?|correta|rechtige|juiste|poprawna"
    r"|prawid\u0142owa|правильн\w{1,3}|верн\w{1,3}"
)
CHOICES = (
    r"^A: (?=\W{0,3}[A-Z]\W{0,3}$)",
    rf"(?i:\b(?:{_VERB})(?::| is)?) ?",
    rf"(?i:(?<![\w-])(?:{_ADJECTIVE})(?: (?:{_NOUN}|\w{{2,12}} (?:{_NOUN}))){{0,1}}{_WRAP}(?:{_TO_WHAT}|,? (?:which"
    rf"|that|here|in this case))"
    rf" ?(?:\b(?:{_BE}|{_VERBS})(?!\w)|{_SIGN}))",
    rf"(?i:^[ #*_>]{{0,8}}(?:\w{{2,12}} ){{0,1}}(?:{_NOUN})(?: (?:that"
    rf"|which) \w{{1,12}}(?: \w{{1,12}})?)?{_WRAP}(?:[:=\uff1a]|\b(?:is|ist|est|es)\b))",
    r"(?:选择|選擇|应选|應選|故选|故選|因此选|所以选|选|選)(?:择|擇)?(?:是|为|:)?",
)
NOT = r"(?:not|nicht|never|neither|nor|no|pas|não|non|不是)\b"
RATHER = r"(?:\bbut\b|\brather\b|\binstead\b|\bit is\b|\bit's\b|\bsondern\b|\bmais\b|\bsino\b|而是)"
SO = (
    r"clearly|definitely|probably|most likely|likely|obviously|certainly|surely|c'est(?: la)?|es ist|es la|è la"
    r"|so|thus|hence|therefore|consequently|conclusion|in conclusion|finally|\u2234|->|=>|\u2192|\u21d2"
    r"|it(?:'s| is| must be| has to be| should be| would be)|that(?:'s| is| leaves(?: us with)?| makes it)"
    r"|this (?:is|leaves|means|gives|must be)|leaving|leaves|must be|故|所以|因此|also|donc|por tanto|portanto|quindi"
)
