"""Visual tokens chosen among real ones: scores, losses, what they converge to, and what a generation takes."""

import math

import pytest
import torch

from tests.modeling.test_modeling_setokim import ROWS, written_out
from tests.modeling.test_setokim_writing import BUDGET, eager_model
from tests.tiny import IMAGE_TOKEN_ID, batch, same
from tests.tiny_setokim import MAX_TOKENS, START, images_of_lengths, tiny_setokim
from vistok import SetokimForConditionalGeneration, SetokimModel
from vistok.modeling.token_bank import TokenBank, TokenChooser

K, SIZE, HIDDEN = 7, 5, 6


def random_bank(num_tokens=K, seed=0) -> TokenBank:
    torch.manual_seed(seed)
    bank = TokenBank(num_tokens, SIZE, HIDDEN)
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    return bank


def score(bank, state, token) -> float:
    """By the formula, in float64."""
    w = {name: parameter.detach().double() for name, parameter in bank.named_parameters()}
    centered = token.double() - w["tokens"].mean(0)
    hidden = torch.nn.functional.gelu(w["key_up.weight"] @ centered + w["key_up.bias"])
    key = centered + w["key_down.weight"] @ hidden + w["key_down.bias"]
    return float((w["query.weight"] @ state.double() + w["query.bias"]) @ key)


def with_bank(model, num_tokens=12, seed=1):
    """A tiny Setokim with random tokens and scores that tell them apart."""
    model.add_token_bank(num_tokens)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.token_bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


class TestLosses:
    def test_losses_are_cross_entropies_among_the_bank_and_the_tokens_of_the_row(self):
        bank, generator = random_bank(), torch.Generator().manual_seed(1)
        tokens, states = (torch.randn(n, size, generator=generator) for n, size in ((6, SIZE), (3, HIDDEN)))
        token_rows, rows, targets = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1]), torch.tensor([1, 2, 4])
        losses = bank.losses(states, rows, tokens, token_rows, targets)
        for state, row, target, loss in zip(states, rows, targets, losses):
            candidates = [*bank.tokens, *tokens[token_rows == row]]
            scores = [score(bank, state, token) for token in candidates]
            expected = math.log(sum(math.exp(s) for s in scores)) - score(bank, state, tokens[target])
            assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)

    def test_a_new_bank_finds_all_candidates_alike_and_gets_gradients(self):
        bank = TokenBank(K, SIZE, HIDDEN)
        bank.fill(torch.randn(K, SIZE, generator=torch.Generator().manual_seed(0)))
        states, tokens = torch.randn(2, HIDDEN), torch.randn(3, SIZE)
        losses = bank.losses(states, torch.zeros(2).long(), tokens, torch.zeros(3).long(), torch.tensor([0, 2]))
        assert losses.tolist() == pytest.approx([math.log(K + 3)] * 2)
        losses.sum().backward()
        assert bank.query.weight.grad.abs().sum() > 0 and bank.tokens.grad is None

    def test_choices_follow_a_distribution_of_two_modes_whose_mean_is_no_token(self):
        """Planted: of a state come tokens around two opposite points, three times as often around the first."""
        generator = torch.Generator().manual_seed(0)
        points = 2.0 * torch.eye(SIZE)[:4]
        modes = torch.stack([points[0], -points[0], points[1], points[2]])

        def draw(count):
            kinds = torch.randint(2, (count,), generator=generator)
            of_first = torch.where(torch.rand(count, generator=generator) < 0.75, 0, 1)
            which = torch.where(kinds == 0, of_first, 2 + (torch.rand(count, generator=generator) < 0.5).long())
            noise = 0.1 * torch.randn(count, SIZE, generator=generator)
            return torch.nn.functional.one_hot(kinds, HIDDEN).float(), modes[which] + noise

        torch.manual_seed(0)
        bank = TokenBank(1024, SIZE, HIDDEN)
        bank.fill(draw(1024)[1])
        regression = torch.nn.Linear(HIDDEN, SIZE)
        parameters = [p for p in (*bank.parameters(), *regression.parameters()) if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(400):
            states, tokens = draw(256)
            own = torch.arange(256)
            loss = bank.losses(states, own, tokens, own, own).mean()
            loss = loss + (regression(states) - tokens).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = torch.nn.functional.one_hot(torch.tensor([0]), HIDDEN).float().expand(4000, -1)
        queries = bank.queries(state)
        chooser = TokenChooser(bank, temperature=1.0, generators=torch.Generator().manual_seed(1))
        drawn = chooser.choose(queries.detach())
        nearest = torch.cdist(drawn, modes).argmin(1)
        shares = torch.bincount(nearest, minlength=4) / len(nearest)
        assert abs(float(shares[0]) - 0.75) < 0.08 and abs(float(shares[1]) - 0.25) < 0.08
        # The regression is between both, and no token is there.
        mean = regression(state[:1])[0].detach()
        assert float(torch.dist(mean, 0.5 * points[0])) < 0.3 < float(torch.cdist(mean[None], bank.tokens).min()) - 0.3


class TestChooser:
    def test_the_best_is_chosen_and_none_twice_in_an_image(self):
        bank = random_bank()
        queries = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2))
        order = (queries @ bank.keys_of_bank().T).argsort(1, descending=True)
        chooser = TokenChooser(bank)
        yes, no = torch.tensor([True, True]), torch.tensor([False, False])
        for step in range(K):
            chosen = chooser.choose(queries)
            assert torch.equal(chosen, bank.tokens[order[:, step]])
            chooser.accept(yes, no)
        assert chooser.choose(queries).isfinite().all()  # all are taken
        chooser.accept(no, torch.tensor([True, False]))  # the first row begins another image
        assert torch.equal(chooser.choose(queries)[0], bank.tokens[order[0, 0]])

    def test_what_was_not_written_is_still_to_be_had(self):
        bank, queries = random_bank(), torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
        chooser = TokenChooser(bank)
        first = chooser.choose(queries)
        chooser.accept(torch.tensor([False]), torch.tensor([False]))  # the row ended its image instead
        assert torch.equal(chooser.choose(queries), first)

    def test_a_row_may_take_the_tokens_of_its_own_prompt_alone(self):
        bank = random_bank()
        with torch.no_grad():
            bank.tokens.mul_(1e-3)
        prompts = [torch.randn(n, SIZE, generator=torch.Generator().manual_seed(n)) for n in (3, 0, 1)]
        queries = 5 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(9)).expand(6, -1)
        chosen = TokenChooser(bank, prompts).choose(queries)
        for row, prompt in enumerate(prompts):
            candidates = torch.cat([bank.tokens, prompt])
            best = candidates[(queries[0] @ bank.keys(candidates).T).argmax()]
            assert torch.equal(chosen[2 * row], best) and torch.equal(chosen[2 * row + 1], best)
        assert not torch.equal(chosen[0], chosen[2])

    def test_draws_of_a_row_with_a_generator_of_its_own_are_the_same_in_a_batch(self):
        bank, queries = random_bank(), torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))

        def draws(rows):
            own = [torch.Generator().manual_seed(row) for row in rows]
            chooser = TokenChooser(bank, temperature=2.0, generators=own)
            return torch.stack([chooser.choose(queries[rows]) for _ in range(5)], 1)

        together = draws([0, 1, 2])
        for row in range(3):
            assert torch.equal(draws([row])[0], together[row])
        assert len(together.unique(dim=1)[0]) > 1

    def test_a_negative_temperature_is_an_error(self):
        with pytest.raises(ValueError, match=r"token_temperature is -1, expected 0"):
            TokenChooser(random_bank(), temperature=-1)


class TestSetokim:
    @torch.no_grad()
    def test_the_loss_of_choices_is_that_of_each_row_alone(self):
        model = with_bank(tiny_setokim())
        images, _ = images_of_lengths(model, 2)
        rows = [[9, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342], [7, 8, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]]
        inputs = batch(*rows)
        labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), torch.tensor(-100))
        both = model(**inputs, pixel_values=images, labels=labels)
        parts = []
        for row, image in zip(rows, images):
            ids = torch.tensor([row])
            alone = model(input_ids=ids, pixel_values=image[None], labels=ids)
            parts.append(alone.choice_losses)
            assert float(alone.loss_choice) == pytest.approx(float(alone.choice_losses.mean()))
            total = alone.loss_lm + alone.loss_visual + alone.loss_length + 0.3 * alone.loss_choice
            assert float(alone.loss) == pytest.approx(float(total))
        torch.testing.assert_close(both.choice_losses, torch.cat(parts), rtol=1e-4, atol=1e-4)
        tokens = model.get_image_features(images[:1])
        kept = tokens.tokens[0][tokens.token_mask[0]]
        states = model.model(input_ids=torch.tensor(rows[:1]), pixel_values=images[:1]).last_hidden_state[0]
        candidates = [*model.token_bank.tokens, *kept]
        for place in range(len(kept)):
            state = states[1 + place]  # of [Img] and of the tokens before
            scores = torch.tensor([score(model.token_bank, state.detach(), c.detach()) for c in candidates])
            expected = scores.logsumexp(0) - scores[12 + place]
            assert float(parts[0][place]) == pytest.approx(float(expected), rel=1e-3)

    def test_images_are_written_of_tokens_of_the_bank_and_of_the_prompt(self):
        model = with_bank(eager_model())
        images, _ = images_of_lengths(model)
        inputs = batch(*written_out(ROWS)) | {"pixel_values": images}
        settings = {"max_new_tokens": 24, "max_image_tokens": BUDGET, "return_dict_in_generate": True}
        output = model.generate(**inputs, **settings, do_sample=False)
        features = model.get_image_features(images)
        real = torch.cat([model.token_bank.tokens, features.tokens[features.token_mask]])
        written = [image for row in output.visual_tokens for image in row]
        assert written
        for image in written:
            assert float(torch.cdist(image, real).min(1).values.max()) < 1e-5
            assert len(image.unique(dim=0)) == len(image)
        regressed = model.generate(**inputs, **settings, do_sample=False, choose_tokens=False)
        plain = eager_model().generate(**inputs, **settings, do_sample=False)
        assert torch.equal(regressed.sequences, plain.sequences)
        assert all(
            same(a, b, 1e-5)
            for one, other in zip(regressed.visual_tokens, plain.visual_tokens)
            for a, b in zip(one, other)
        )

    def test_images_of_a_batch_are_those_of_each_row_alone(self):
        model = with_bank(tiny_setokim())
        images, _ = images_of_lengths(model, 2)
        slots = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]
        rows = [[5, *slots, 6, START], [*slots, 9, 10, START]]
        tokens, mask = model.write_image(**batch(*rows), pixel_values=images)
        for number, row in enumerate(rows):
            alone, kept = model.write_image(**batch(row), pixel_values=images[number : number + 1])
            assert same(tokens[number][mask[number]], alone[0][kept[0]], 1e-4)

    def test_seeds_decide_what_is_drawn(self):
        model = with_bank(tiny_setokim())
        prompts = batch([5, 6, START], [7, 8, START])

        def write(seed):
            own = [torch.Generator().manual_seed(seed + row) for row in range(2)]
            return model.write_image(**prompts, token_temperature=1e4, token_generator=own)[0]

        first, again, other = write(0), write(0), write(10)
        assert torch.equal(first, again)
        assert first.shape != other.shape or not torch.equal(first, other)

    def test_the_bank_is_saved_and_loaded_with_the_model(self, tmp_path):
        model = with_bank(tiny_setokim())
        model.save_pretrained(tmp_path)
        loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path)
        assert loaded.config.token_bank_size == 12
        for name, parameter in model.token_bank.named_parameters():
            found = loaded.token_bank.get_parameter(name)
            assert torch.equal(found, parameter)
        ids = torch.tensor([[9, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]])
        loaded(input_ids=ids, pixel_values=images_of_lengths(model, 2)[0][:1], labels=ids).loss.backward()
        assert loaded.token_bank.query.weight.grad.abs().sum() > 0 and loaded.token_bank.tokens.grad is None
        SetokimModel.from_pretrained(tmp_path)  # without what writes

    def test_a_model_without_a_bank_does_not_choose(self):
        with pytest.raises(ValueError, match="choose_tokens needs a model with a bank"):
            tiny_setokim().write_image(torch.tensor([[5, START]]), choose_tokens=True)

    def test_a_bank_of_another_size_is_an_error(self):
        model = with_bank(tiny_setokim())
        bank = model.token_bank
        model.add_token_bank(12)
        assert model.token_bank is bank
        with pytest.raises(ValueError, match="has a bank of 12 tokens already, not of 13"):
            model.add_token_bank(13)
