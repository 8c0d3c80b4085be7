"""Words without content: articles, prepositions, pronouns, auxiliary verbs."""

from __future__ import annotations

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any each every and or but nor so of in on at to from by with without for as
    into onto over under above below behind beside between near next left right is are was were be been being am do
    does did has have had having it its he him his she her they them their we us our you your i me my there here
    which who whom whose what where when while not no picture photo image showing
    """.split()  # noqa: SIM905 - readable
)
