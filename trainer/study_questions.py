"""The questions of a study and their answers: paired differences, over groups of towers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..evaluation.study_tasks import FINE_GRAINED_TASKS, SEMANTIC_MEASURES
from .study_recipe import StudyRecipe
from .study_scores import Kind, Scores

LARGE, OTHERS = "towers with large-scale pretraining, and their students", "the other towers"
HELPS = "Does feature distillation help fine-grained perception"
MASKS = "Does masking hurt feature distillation"
MASKS_MORE = "Does masking hurt more where the tower is frozen than where it is tuned?"
TUNES = "Does tuning the tower lose semantics?"
Terms = Sequence[tuple[Kind, float]]


def large_scale(encoders: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """
    Encoders with large-scale pretraining, which a study takes as they are, and students of such.

    Args:
        encoders (`dict`): of the recipe, each behind its teacher.
    """
    found: set[str] = set()
    for name, encoder in encoders.items():
        if encoder["how"] == "pretrained" or encoder.get("teacher") in found:
            found.add(name)
    return found


def ask_questions(recipe: StudyRecipe, scores: Scores) -> list[dict[str, Any]]:
    """
    The questions of the study, as far as it has the cells for them.

    Args:
        recipe ([`StudyRecipe`]): says which encoder is whose student.
        scores ([`Scores`]): of the cells.

    Returns:
        `list[dict]`: for each question `question`, `about` (the measures it is about), `confound` (what else would
        explain the answer, or `None`), `pairs` (`name`, `terms` and for each measure the difference with its
        interval), and `groups` of pairs: `towers`, their `members`, and `mean`. A difference is `at_floor` if all
        models in it are: then it cannot be told.
    """
    distilled = {name: encoder for name, encoder in recipe.encoders.items() if encoder["how"] == "distilled"}
    plain = {encoder["teacher"]: name for name, encoder in distilled.items() if not encoder.get("mask_ratio")}
    masked = [
        (name, plain[e["teacher"]]) for name, e in distilled.items() if e.get("mask_ratio") and e["teacher"] in plain
    ]
    labels = {name: encoder.get("label") or name for name, encoder in recipe.encoders.items()}
    semantic = SEMANTIC_MEASURES if "vqa_semantic" in scores.parts.measures else ("vqa", "caption")

    def minus(first: str, second: str, tuning: str) -> tuple[str, Terms]:
        return f"{labels[first]} − {labels[second]}", [((first, tuning), 1.0), ((second, tuning), -1.0)]

    asked: list[tuple[str, Sequence[str], list[tuple[str, Terms]]]] = []
    for tuning in recipe.tuning:
        state = "" if tuning == "frozen" else ", tuned"
        helps = [minus(student, teacher, tuning) for teacher, student in plain.items()]
        hurts = [minus(name, other, tuning) for name, other in masked]
        asked.append((f"{HELPS}{state}?", FINE_GRAINED_TASKS, helps))
        asked.append((f"{MASKS}{state or ', frozen'}?", scores.task_names, hurts))
    if set(recipe.tuning) == {"frozen", "tuned"}:
        both: list[tuple[str, Terms]] = [
            (f"({labels[name]} − {labels[other]}), frozen − tuned", _interaction(name, other))
            for name, other in masked
        ]
        asked.append((MASKS_MORE, scores.task_names, both))
        tuned: list[tuple[str, Terms]] = [
            (f"{labels[name]}: tuned − frozen", [((name, "tuned"), 1.0), ((name, "frozen"), -1.0)])
            for name in recipe.encoders
        ]
        asked.append((TUNES, semantic, tuned))
    large, found = large_scale(recipe.encoders), []
    for question, about, wanted in asked:
        pairs = [(name, terms) for name, terms in wanted if {kind for kind, _ in terms} <= set(scores.kinds)]
        if pairs:
            known = [*scores.tasks.measures, *scores.parts.measures]
            entry = {"question": question, "about": [name for name in about if name in known]}
            found.append({**entry, "confound": _confound(recipe, question), **_answer(scores, pairs, large)})
    return found


def _interaction(masked: str, plain: str) -> Terms:
    return [
        ((masked, "frozen"), 1.0), ((plain, "frozen"), -1.0), ((masked, "tuned"), -1.0), ((plain, "tuned"), 1.0),
    ]  # fmt: skip


def _confound(recipe: StudyRecipe, question: str) -> str | None:
    if question.startswith(MASKS) or question == MASKS_MORE:
        shares = sorted({encoder["mask_ratio"] for encoder in recipe.encoders.values() if encoder.get("mask_ratio")})
        told = " or ".join(f"{100 * share:g} %" for share in shares)
        return (
            f"With masks the loss falls on {told} of the patches only, at the same number of steps: a masked student "
            "has been told less, and a lower score may be that of a shorter training."
        )
    if question.startswith(HELPS):
        return (
            "Students see the scenes that the language model is trained on, which their teachers, if pretrained "
            "elsewhere, do not: a gain may come from the scenes, and a loss from a training that is too short."
        )
    return None


def _answer(scores: Scores, pairs: Sequence[tuple[str, Terms]], large: set[str]) -> dict[str, Any]:
    measures = [*scores.tasks.measures, *scores.parts.measures]
    of_pairs: list[dict[str, Any]] = []
    for name, terms in pairs:
        differences = {measure: _difference(scores, terms, measure) for measure in measures}
        listed = [[*kind, factor] for kind, factor in terms]
        of_pairs.append({"name": name, "terms": listed, "differences": differences})
    groups = []
    for towers, inside in ((LARGE, True), (OTHERS, False)):
        members = [(name, terms) for name, terms in pairs if (terms[0][0][0] in large) == inside]
        if members:
            every = [(kind, factor / len(members)) for _, terms in members for kind, factor in terms]
            mean: dict[str, Any] = {measure: _difference(scores, every, measure) for measure in measures}
            inside_names = {name for name, _ in members}
            for measure in measures:
                at_floor = [one["differences"][measure]["at_floor"] for one in of_pairs if one["name"] in inside_names]
                mean[measure] |= {"num_at_floor": sum(at_floor), "at_floor": all(at_floor)}
            groups.append({"towers": towers, "members": [name for name, _ in members], "mean": mean})
    return {"pairs": of_pairs, "groups": groups}


def _difference(scores: Scores, terms: Terms, measure: str) -> dict[str, Any]:
    table = scores.table(measure)
    if [factor for _, factor in terms] == [1.0, -1.0]:
        found = table.difference(terms[0][0], terms[1][0], measure)
    else:
        found = table.contrast(terms, measure)
    at_floor = all(scores.is_at_floor(kind, measure) for kind, _ in terms)
    return {**asdict(found), "at_floor": at_floor}


__all__ = ["HELPS", "LARGE", "MASKS", "MASKS_MORE", "OTHERS", "TUNES", "ask_questions", "large_scale"]
