"""Tells a model's reasoning from its answer, by the tags that models and their chat templates write around it."""

from __future__ import annotations

import re

# DeepSeek, Qwen and most others; Seed; Kimi; Magistral; Sky-T1; Command A; Gemma; Open WebUI; Granite; Apriel; Ollama.
_NAME = (
    r"(?:[a-z]{1,10}:)?(?:think|thinking|thoughts?|reasoning|reason|analysis|reflection|scratchpad|rationale"
    r"|inner[_ ]?(?:thoughts?|monologue)|antthinking|longcat_think|chain[_-]of[_-]thought|cot)"
)
_TAG = re.compile(
    rf"(?P<open>(?:[<\u25c1]|&lt;)\s?{_NAME}(?:\s[^<>\n]{{0,100}})?(?:[>\u25b7]|&gt;)|\[THINK\]|<\|begin_of_thought\|>"
    r"|<\|START_THINKING\|>|<\|(?:begin_of_)?think(?:ing)?\|>|<\|inner_prefix\|>|<\|channel>(?:thought)?|<unused94>(?:thought)?"
    r"|<details\s[^<>\n]{0,40}type=\"reasoning\"[^<>\n]{0,100}>"
    r"|^Here(?: i|')s my thought process:|^Here are my reasoning steps:|^Thinking\.\.\.$)"
    rf"|(?P<close>(?:[<\u25c1]|&lt;)\s?/\s?{_NAME}\s?(?:[>\u25b7]|&gt;)|\[/THINK\]|<\|end_of_thought\|>"
    r"|<\|END_THINKING\|>|<\|(?:end_of_|/)think(?:ing)?\|>|<\|inner_suffix\|>|<channel\|>|<unused95>"
    r"|^Here(?: i|')s my response:|\[BEGIN FINAL RESPONSE\]|^\.\.\.done thinking\.$)"
    r"|(?P<details></details>)",
    re.IGNORECASE | re.MULTILINE,
)
_HINTS = (  # in lower case, one of which is in every tag; far faster to look for than the tags
    *("think", "though", "reason", "analysis", "reflection", "scratchpad", "rationale"),
    *("inner", "cot>", "chain", "unused9", "channel", "respon"),
)
_CHANNEL = re.compile(r"<\|channel\|>\s?(\w{1,20})[^<\n]{0,60}<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|start|call|channel)\|>")
_GLUED_FINAL = "assistantfinal"  # what is left of the same marks without special tokens


def split_reasoning(output: str) -> tuple[str, str]:
    """The reasoning and the answer in an output; the answer is "" where the reasoning does not end.

    A closing tag without an opening one, which chat templates often write themselves, makes all before it reasoning;
    an opening tag that is never closed, all after it. Of several stretches outside the tags the last is the answer.
    Tags that a text quotes in backticks are not tags. The channels of gpt-oss count too. Takes linear time.
    """
    if "<|channel|>" in output:
        return _split_channels(output)
    if re.match(r"analysis(?=[A-Z*\"'])", output):
        reasoning, found, answer = output.removeprefix("analysis").rpartition(_GLUED_FINAL)
        return (reasoning.strip(), answer.strip()) if found else (answer.strip(), "")
    lowered = output.lower()
    if not any(hint in lowered for hint in _HINTS):
        return "", output
    tags = [tag for tag in _TAG.finditer(output) if output[tag.start() - 1 : tag.start()] != "`"]
    return _split_tags(output, tags) if any(not tag["details"] for tag in tags) else ("", output)


def _split_tags(output: str, tags: list[re.Match[str]]) -> tuple[str, str]:
    parts: list[tuple[str, bool]] = []  # each stretch of text, and whether it stands outside the tags
    opening, position, first = None, 0, 0  # what stands before the part `first` is reasoning
    for tag in tags:
        if tag["details"] and (opening is None or not opening[0].lower().startswith("<details")):
            continue
        stretch = output[position : tag.start()]
        if tag["open"]:
            parts.append((stretch, opening is None))
            opening = opening or tag
        else:
            parts.append((stretch, False))
            first = first if opening else len(parts)
            opening = None
        position = tag.end()
    parts.append((output[position:], opening is None))
    answers = [i for i, (text, outside) in enumerate(parts) if i >= first and outside and text.strip()]
    reasoning = "".join(text for i, (text, _) in enumerate(parts) if not answers or i != answers[-1])
    return reasoning.strip(), parts[answers[-1]][0].strip() if answers else ""


def _split_channels(output: str) -> tuple[str, str]:
    """The same of the channels of gpt-oss: <|channel|>analysis<|message|>...<|end|>, then one named final."""
    reasoning, answer = [], ""
    for mark in _CHANNEL.finditer(output):
        end = _CHANNEL_END.search(output, mark.end())
        text = output[mark.end() : end.start() if end else len(output)].strip()
        if mark[1].lower() == "final":
            answer = text
        else:
            reasoning.append(text)
    return "\n".join(reasoning), answer
