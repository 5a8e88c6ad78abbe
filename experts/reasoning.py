"""Tells a model's reasoning, between <think> and </think>, from its answer."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


def split_reasoning(output: str) -> tuple[str, str]:
    """The reasoning and the answer in an output; the answer is "" where the reasoning does not end.

    All that stands before the last closing tag is reasoning, also without an opening tag, which chat templates often
    write themselves; so is all that follows an opening tag that is never closed. Takes linear time.
    """
    tags = list(_TAG.finditer(output))
    closing = [i for i, tag in enumerate(tags) if tag[1]]
    start = tags[closing[-1]].end() if closing else 0
    opening = next((tag for tag in tags[closing[-1] + 1 if closing else 0 :]), None)
    end = opening.start() if opening else len(output)
    if not tags:
        return "", output
    reasoning = _TAG.sub("", output[:start]) + (output[opening.end() :] if opening else "")
    return reasoning.strip(), output[start:end].strip()
