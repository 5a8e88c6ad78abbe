"""The words in which models announce an answer, in some 30 languages, as patterns without nested repetition."""

from __future__ import annotations

QUESTION_WORDS = r"Questions?|Q|Frage|Pregunta|Pergunta|Domanda|Вопрос|问题|問題|質問"

_WRAP = r"[ *_~`\"'\u201c\u201d\u201e\u00ab\u00bb>)\]}$]{0,6}"
_WORDS = r"(?:,? (?!(?:depends|whether|if|not|never|cannot|because|options|choices|nor)\b)[^\W\d_]{1,15}){0,3}?"
_BE = (
    r"is|are|was|would(?: \w{4,12})? be|will be|must(?: \w{4,12})? be|should(?: \w{4,12})? be|might be|may be|could be"
    r"|can only be|can be|has to be|ought to be|seems(?: to be)?|appears to be|remains|becomes|equals|turns out to be"
    r"|comes out to(?: be)?|works out to(?: be)?"
)
_TO_WHAT = r"(?: (?:to|for|of|in)\b[^\n.:;=]{0,100}?)?"
_SIGN = r"[:=\uff1a]|->|=>|[\u2192\u21d2]|(?<= )[-\u2013\u2014](?= )"
_ENGLISH = (
    rf"(?<![^\W\d_])(?:answers?|ans)(?:_\w{{1,15}})?(?![^\W_]){_WRAP}"
    rf"(?:{_WORDS}{_TO_WHAT}{_WRAP},? ?(?:(?:\b(?:{_BE})\b)(?:{_WRAP}[:=\uff1a])?|\\?(?:{_SIGN}))|\.(?= ?\())"
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
    r"(?:答案|回答|解答|答え|正解|正答|答|정답|답변|답)"
    rf"{_WRAP}(?:选项|選項)?应?该?應?該?[】」』]?{_WRAP} ?(?:是|为|為|选|選|は|은|는|[:=\uff1a]){{1,3}}(?:选|選)?"
)
# "Answer" alone on a line, as a heading; "#### 5" at the end, as in GSM8K.
_HEADING = rf"^[ #*_>]{{0,8}}(?:the |my |final |correct |short ){{0,3}}(?:answer|{_NOUNS}|答案|정답|答え){_WRAP}(?=\n)"
_HASHES = r"####(?!#)(?=[^\n]{0,200}\s{0,3}\Z| ?[-+$(]{0,3}\d[\d,.]{0,30}%?(?:\n|\Z))"
ANSWER_IS = rf"{_ENGLISH}|{_OTHER}|{_EAST_ASIAN}|{_HEADING}|{_HASHES}"
