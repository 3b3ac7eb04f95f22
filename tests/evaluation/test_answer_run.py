"""Who answers which questions, and what is kept of the answers."""

from vistok.evaluation.answer_run import AnswerRun
from vistok.evaluation.processes import Share

BATCHES = [[0, 1], [2, 3], [4, 5], [6]]


def taken(**options) -> list[list[int]]:
    run = AnswerRun(**options)
    return [batch for batch in BATCHES if run.takes(batch)]


def test_batches_that_lack_an_answer_are_dealt_to_processes_in_turns():
    assert taken() == BATCHES
    known = {0: "a", 1: "b", 2: "c"}
    assert taken(known=known) == [[2, 3], [4, 5], [6]], "a batch is answered as a whole, or not at all"
    assert [taken(known=known, share=Share(rank, 2)) for rank in range(2)] == [[[2, 3], [6]], [[4, 5]]]


def test_known_answers_stay_and_only_new_ones_are_reported():
    reported, known = [], {0: "known"}
    run = AnswerRun(known, lambda *news: reported.append(news))
    run.add(zip([0, 1], ["other", "new"]))
    assert run.answers == {0: "known", 1: "new"} and known == {0: "known"}
    assert reported == [([1], ["new"])]
    assert not run.takes([0, 1])
