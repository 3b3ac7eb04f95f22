"""Image positions that have a prediction: not at the beginning, nor behind padding or another conversation."""

import torch

from vistok.modeling.visual_positions import predicted_image_positions


def positions(text: str) -> torch.Tensor:
    """`"i"` for a token of an image, anything else for another."""
    return torch.tensor([[letter == "i" for letter in text]])


def found(text: str, **given) -> str:
    predicted = predicted_image_positions(positions(text), **given)[0].tolist()
    return "".join("x" if one else "." for one in predicted)


def test_every_image_token_but_the_very_first_of_a_row_is_predicted():
    assert found("iiitii") == ".xx.xx"
    assert found("tiit") == ".xx."
    assert found("ttt") == "..."
    assert found("i") == "."


def test_padding_predicts_nothing_and_an_image_behind_it_begins_its_row():
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    assert found("ttiit", attention_mask=mask) == "...x."
    assert found("ttiit", attention_mask=mask.bool()) == "...x."
    assert found("tiitt", attention_mask=torch.tensor([[1, 1, 1, 0, 0]])) == ".xx.."
    assert found("tiiii", attention_mask=torch.tensor([[1, 1, 1, 0, 0]])) == ".xx.."


def test_a_mask_that_counts_the_cache_too_is_read_from_its_end():
    assert found("tii", attention_mask=torch.tensor([[0, 0, 1, 1, 1]])) == ".xx"


def test_positions_that_do_not_count_on_begin_another_sequence():
    assert found("tiitii", position_ids=torch.tensor([[0, 1, 2, 3, 4, 5]])) == ".xx.xx"
    assert found("tiiiit", position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])) == ".xx.x."
    assert found("tiiiit", position_ids=torch.tensor([[0, 1, 2, 1, 2, 3]])) == ".xx.x."


def test_whom_a_token_may_not_attend_to_does_not_predict_it():
    attend = torch.ones(6, 6, dtype=torch.bool).tril()
    attend[3:, 1:3] = False
    assert found("tiiiit", attention_mask=attend[None, None]) == ".xx.x."
    # The masks that generate() writes for a static cache are as long as the cache, or numbers: they say nothing here.
    assert found("tii", attention_mask=attend[None, None, :3]) == ".xx"
    assert found("tiiiit", attention_mask=torch.zeros(1, 1, 6, 6)) == ".xxxx."
    assert found("tiiiit", attention_mask={"full_attention": None}) == ".xxxx."


def test_unused_placeholders_predict_nothing():
    assert found("tii.ii", unused=positions("...i..")) == ".xx..x"


def test_rows_are_independent_and_their_positions_may_be_one_row():
    placeholders = torch.cat([positions("tii"), positions("iit")])
    found = predicted_image_positions(placeholders, position_ids=torch.arange(3).unsqueeze(0))
    assert found.tolist() == [[False, True, True], [False, True, False]]
