"""What every score refuses before it counts: too few predictions, none, or what is no text."""

from collections.abc import Sequence, Sized


def check_predictions(predictions: Sequence[str], questions: Sized, what: str = "questions") -> None:
    """
    Refuses predictions that cannot be those of the questions.

    Args:
        predictions (`list[str]`): what a model said.
        questions (`list`): what it was asked, or what is right.
        what (`str`, *optional*, defaults to `"questions"`): what the message calls them.

    Raises:
        ValueError: if there are no questions, not as many predictions, or a prediction is no text; names it.
    """
    if isinstance(predictions, str) or len(predictions) != len(questions) or not len(questions):
        given = "one text" if isinstance(predictions, str) else f"{len(predictions)} predictions"
        raise ValueError(f"{given} for {len(questions)} {what}: expected a list with one for each, and some.")
    for row, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise ValueError(f"prediction {row} is {prediction!r}, expected text.")


def check_positive(**numbers: int | None) -> None:
    """
    Refuses numbers of questions and the like that are less than 1.

    Args:
        **numbers (`int` or `None`): by the names of arguments; `None` is no limit.

    Raises:
        ValueError: if one is less than 1; names it.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1.")


def check_text_lists(lists: Sequence[Sequence[str]], of: str) -> None:
    """
    Refuses right answers that are not one or more texts for each question.

    Args:
        lists (`list[list[str]]`): the answers, or the reference captions, of each question.
        of (`str`): what the message calls one of these lists, such as `"answers to question"`.

    Raises:
        ValueError: if one is empty, a single text, or holds what is no text; names its row.
    """
    for row, texts in enumerate(lists):
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not len(texts):
            raise ValueError(f"the {of} {row} are {texts!r}, expected a list of one or more.")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"the {of} {row} hold {wrong[0]!r}, expected text.")


__all__ = ["check_positive", "check_predictions", "check_text_lists"]
