"""What the tests of all graders use."""

from experts.grading import GRADERS, Grade
from experts.types import Query

FOUR = "Which one?\nA. a monopoly\nB. a cartel\nC. a market\nD. a shop"


def grade(name: str, output: str, reference: str | None, text: str = FOUR) -> Grade:
    return GRADERS[name](output, Query("q1", text, "", reference))
