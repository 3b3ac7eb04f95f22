"""Visual tokens chosen among real ones: scores, losses, what they converge to, and what a generation takes."""

import math

import pytest
import torch

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


class TestKeys:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_keys_of_tokens_that_are_far_from_0_keep_their_differences(self, dtype):
        bank = TokenBank(K, SIZE, HIDDEN)
        generator = torch.Generator().manual_seed(0)
        tokens = (torch.randn(K, SIZE, generator=generator) + 20).to(dtype)
        bank.fill(tokens)
        expected = tokens.double() - tokens.double().mean(0)
        torch.testing.assert_close(bank.to(dtype).keys_of_bank().double(), expected, rtol=1e-5, atol=1e-5)

    def test_autocast_changes_neither_losses_nor_choices(self):
        bank, generator = random_bank(200), torch.Generator().manual_seed(1)
        states, tokens = torch.randn(9, HIDDEN, generator=generator), torch.randn(9, SIZE, generator=generator)
        own = torch.arange(9)

        def found():
            chosen = TokenChooser(bank, [tokens]).choose(bank.queries(states))
            return bank.losses(states, own, tokens, own, own), chosen

        plain = found()
        with torch.autocast("cpu", torch.bfloat16):
            cast = found()
        assert all(map(torch.equal, plain, cast))

    @pytest.mark.parametrize("shape", [(1, SIZE), (K, 1), (K + 1, SIZE)])
    def test_a_bank_is_filled_with_as_many_tokens_as_it_has_places(self, shape):
        bank = TokenBank(K, SIZE, HIDDEN)
        with pytest.raises(ValueError, match=r"The bank has the shape \(7, 5\)"):
            bank.fill(torch.ones(shape))
        assert not bank.is_filled
        bank.fill(torch.ones(K, SIZE))
        assert bank.is_filled


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

    def test_draws_of_rows_whose_prompts_have_different_numbers_of_tokens_are_the_same_in_a_batch(self):
        bank, generator = random_bank(30), torch.Generator().manual_seed(2)
        prompts = [torch.randn(n, SIZE, generator=generator) for n in (1, 9, 0)]
        queries = 0.1 * torch.randn(3, SIZE, generator=generator)

        def draws(rows):
            own = [torch.Generator().manual_seed(row) for row in rows]
            chooser = TokenChooser(bank, [prompts[row] for row in rows], temperature=1.0, generators=own)
            return torch.stack([chooser.choose(queries[rows]) for _ in range(8)], 1)

        together = draws([0, 1, 2])
        for row in range(3):
            assert torch.equal(draws([row])[0], together[row])

    def test_a_row_that_writes_nothing_draws_nothing(self):
        bank, queries = random_bank(), torch.randn(2, SIZE)
        own = [torch.Generator().manual_seed(row) for row in range(2)]
        before = [generator.get_state() for generator in own]
        TokenChooser(bank, temperature=1.0, generators=own).choose(queries, torch.tensor([True, False]))
        assert not torch.equal(own[0].get_state(), before[0]) and torch.equal(own[1].get_state(), before[1])

    def test_one_generator_in_a_list_draws_for_all_rows_and_differently(self):
        bank, queries = random_bank(500), torch.zeros(2, SIZE)
        found = [
            TokenChooser(bank, temperature=1.0, generators=given).choose(queries)
            for given in ([torch.Generator().manual_seed(0)], torch.Generator().manual_seed(0))
        ]
        assert torch.equal(*found) and not torch.equal(*found[0])
        several = [torch.Generator() for _ in range(2)]
        with pytest.raises(ValueError, match="There are 2 generators for 4 rows"):
            TokenChooser(bank, temperature=1.0, generators=several).choose(torch.zeros(4, SIZE))

    def test_a_token_that_is_there_twice_is_chosen_once(self):
        bank = random_bank(3)
        prompt = bank.tokens.detach() + 1e-3 * torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
        chooser = TokenChooser(bank, [torch.randn(2, SIZE), prompt])
        queries = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2)).expand(2, -1)
        chosen = []
        for _ in range(3):
            chosen.append(chooser.choose(queries)[1])
            chooser.accept(torch.tensor([False, True]), torch.tensor([False, False]))
        distances = torch.cdist(torch.stack(chosen), bank.tokens.detach())
        assert distances.argmin(1).unique().tolist() == [0, 1, 2]

    def test_where_all_are_taken_the_best_is_chosen_though_others_have_longer_prompts(self):
        bank, generator = random_bank(2), torch.Generator().manual_seed(5)
        prompts = [torch.randn(n, SIZE, generator=generator) for n in (1, 3)]
        candidates = torch.cat([bank.tokens.detach(), prompts[0]])
        query = bank.keys(candidates[2])  # which likes the token of the prompt best
        assert (bank.keys(candidates) @ query).argmax() == 2
        chooser = TokenChooser(bank, prompts)
        for _ in range(4):
            chosen = chooser.choose(query.expand(2, -1))
            chooser.accept(torch.tensor([True, True]), torch.tensor([False, False]))
        assert torch.equal(chosen[0], candidates[2])

    def test_a_query_that_is_not_finite_chooses_nothing(self):
        queries = torch.zeros(2, SIZE)
        queries[1, 2] = torch.nan
        chosen = TokenChooser(random_bank()).choose(queries)
        assert chosen[0].isfinite().all() and chosen[1].isnan().all()

    @pytest.mark.parametrize("temperature", [-1, math.inf, math.nan])
    def test_a_temperature_that_is_none_is_an_error(self, temperature):
        with pytest.raises(ValueError, match=rf"token_temperature is {temperature}, expected 0"):
            TokenChooser(random_bank(), temperature=temperature)
