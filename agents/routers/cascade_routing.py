"""Cascade routing: before every call it finds the set of experts, asked or not, with the highest net value.

Dekoninck, Baader and Vechev, A Unified Approach to Routing and Cascading for LLMs, arXiv:2410.10347.

B queries at hand, n training queries, K experts, L of them considered, M: max_calls, S samples, W sets kept, P prices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from agents.estimators.base import MAX_CONSIDERED, MAX_PANEL_QUERIES, Estimates
from agents.policies.answer_model import AnswerModel, Calls, fit_answer_model, told
from agents.policies.call_value import Answers, calls_from_table
from agents.routers.base import Context, Router, experts_by_cost, price_grid, usd_per_query, within_reserve
from agents.routers.panels import PRICE_ENDS
from agents.routers.sequences import ask_or_deliver, can_pay, spent_usd
from leeroo_env.dynamics import count_votes
from leeroo_env.table import ExpertTable

SAMPLES = 24
CONSIDERED = 8
KEPT = 4
N_PRICES = 32
# prices after the first call, of that before it (the paper tunes one price a step), and the scale of errors
VARIANTS = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.25), (0.5, 0.25), (2.0, 0.25), (0.5, 1.0), (2.0, 1.0))
ROWS = 500
CHUNK = 8_192  # queries at a time; of a large pool fewer
DRAWS = 2
MANY = 8  # answers, after which estimates count as final
FORBIDDEN = -1e4


class CascadeRouting(Router):
    """Asks the cheapest expert, not asked yet, of the best set; delivers where the set has none.

    The value of a set of experts is the expectation of the best of their qualities, less a price times their costs.
    Qualities are estimates with normal errors, whose covariance is that of the changes of the estimates on the training
    queries, from a number of calls until all experts have answered. Answers update the estimates by `answer_model`. The
    price is that at which the training queries cost the budget per query.
    """

    features: Estimates

    def __init__(
        self,
        table: ExpertTable,
        estimates: Estimates,
        max_calls: int,
        seed: int = 0,
        answer_model: AnswerModel | None = None,
        evidence: Tensor | None = None,
    ):
        self.features, self.max_calls = estimates, max_calls
        answers = Answers.of(table.answer_ids, evidence)
        self.mean_cost_usd = table.mean_cost_usd()
        self.chunk = CHUNK * MAX_CONSIDERED // max(MAX_CONSIDERED, len(self.mean_cost_usd))
        rows = table.rows("train")
        self.answer_model = answer_model or fit_answer_model(
            table, rows, estimates.score[rows], seed, answers.evidence[rows]
        )
        rows = rows[:: -(-len(rows) // MAX_PANEL_QUERIES)]
        generator = torch.Generator(table.device).manual_seed(seed)
        self.noise = self._noise(answers, rows, generator)
        rows = rows[torch.randperm(len(rows), generator=generator, device=table.device)[:ROWS]]
        self.settings, self.spent_usd = self._tune(table, answers, rows)

    @torch.inference_mode()
    def choose(self, context: Context) -> Tensor:
        calls = context.calls
        assert calls is not None
        before_usd = context.remaining_usd + spent_usd(context.estimates, calls)
        n = within_reserve(self.mean_cost_usd, before_usd, context.remaining_queries).sum(dim=1) - 1
        price, later, scale = self._setting(usd_per_query(before_usd, context.remaining_queries), n)
        all_experts = torch.arange(len(self.mean_cost_usd), device=n.device).expand(len(n), -1)
        allowed = can_pay(self.mean_cost_usd, context, all_experts)
        expert, asks = self.next_expert(
            context.estimates, torch.where(calls.made > 0, later, price), scale, calls, allowed
        )
        return ask_or_deliver(self.mean_cost_usd, expert, asks, calls)

    def qualities(self, estimates: Estimates, calls: Calls) -> Tensor:
        """[B, K], estimated chances that experts are right, given the answers so far."""
        k = len(self.mean_cost_usd)
        chance, right = self._chances(estimates, calls)
        quality = torch.cat([chance, right.new_zeros(len(estimates), 1)], dim=1)
        return quality.scatter(1, calls.asked.where(calls.asked >= 0, k), right)[:, :k]

    def _chances(self, estimates: Estimates, calls: Calls, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The chances, given the answers so far, that experts `among` [B, L] (None: all) are right, who were not asked
        [B, L], and that those who were asked are, [B, C]."""
        posterior = self.answer_model.posterior(*told(estimates.reliability(), calls), calls, among)
        right = posterior.joint.sum(dim=2)[:, :-1].gather(1, calls.group.clamp(min=0)) * (calls.group >= 0)
        return posterior.expert_chance(), right

    def next_expert(
        self, estimates: Estimates, price: Tensor, scale: Tensor, calls: Calls, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The expert to ask next [B], and whether to ask [B] bool: of the `allowed` [B, K], at a `price` [B], errors
        taken times `scale` [B]."""
        k = len(self.mean_cost_usd)
        price_usd = price[:, None] * estimates.cost_usd
        asked = one_hot(calls.asked.where(calls.asked >= 0, k), k + 1).sum(dim=1)[:, :k] > 0
        allowed = allowed & ~asked
        among = None
        if k > MAX_CONSIDERED:
            among = (estimates.score - price_usd).masked_fill(~allowed, FORBIDDEN).topk(MAX_CONSIDERED, dim=1).indices
            price_usd, allowed = price_usd.gather(1, among), allowed.gather(1, among)
        chance, right = self._chances(estimates, calls, among)
        best = right.masked_fill(calls.asked < 0, FORBIDDEN).amax(dim=1, keepdim=True).repeat(1, self.noise.shape[2])
        drawn = chance[..., None] + self._noise_after(calls.made, among) * scale[:, None, None]  # [B, K, S]
        alone = drawn.maximum(best[:, None]).mean(dim=2) - price_usd
        place = alone.masked_fill(~allowed, FORBIDDEN).topk(min(CONSIDERED, k), dim=1).indices  # [B, L]
        experts = place if among is None else among.gather(1, place)
        by_cost = experts_by_cost(self.mean_cost_usd).argsort()[experts].argsort(dim=1)
        experts, place = (x.gather(1, by_cost) for x in (experts, place))  # the first of a set is its cheapest
        drawn, open_ = drawn.gather(1, place[..., None].expand(-1, -1, drawn.shape[2])), allowed.gather(1, place)
        price_usd = price_usd.gather(1, place)
        net, first = self._search(best, drawn, price_usd, open_, calls.made)
        stays = torch.where(calls.made > 0, best.mean(dim=1), FORBIDDEN)
        return experts.gather(1, first[:, None]).squeeze(1), (net > stays) & (net > FORBIDDEN / 2)

    def _search(
        self, best: Tensor, drawn: Tensor, price_usd: Tensor, open_: Tensor, made: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The net value of the best set with a new expert [B], and the place of its cheapest new expert [B], by a beam
        search that adds experts in order of cost.

        Args:
            best: [B, S], the best quality of those asked.
            drawn: [B, L, S], qualities, by rising cost.
            price_usd: [B, L], what they cost, in score.
            open_: [B, L] bool, the experts that may be asked.
            made: [B], calls so far.
        """
        n, samples = drawn.shape[1:]
        place = torch.arange(n, device=best.device)
        tops, paid = best[:, None], torch.zeros_like(best[:, :1])  # of the sets kept, [B, W, S] and [B, W]
        last, first = torch.full_like(paid, -1, dtype=torch.int64), torch.zeros_like(paid, dtype=torch.int64)
        net, answer = torch.full_like(paid[:, 0], 2 * FORBIDDEN), first[:, 0]
        for depth in range(self.max_calls):
            fits = open_[:, None] & (place > last[..., None]) & (depth + made < self.max_calls)[:, None, None]
            if not bool(fits.any()):
                break
            value = tops[:, :, None].maximum(drawn[:, None]).mean(dim=3) - paid[..., None] - price_usd[:, None]
            value, which = value.masked_fill(~fits, 2 * FORBIDDEN).flatten(1).topk(min(KEPT, fits[0].numel()), dim=1)
            parent, last = which // n, which % n
            tops = tops.gather(1, parent[..., None].expand(-1, -1, samples))
            tops = tops.maximum(drawn.gather(1, last[..., None].expand(-1, -1, samples)))
            paid = paid.gather(1, parent) + price_usd.gather(1, last)
            first = last if depth == 0 else first.gather(1, parent)
            last = last.masked_fill(value <= FORBIDDEN, n)
            better = value[:, 0] > net
            net, answer = torch.where(better, value[:, 0], net), torch.where(better, first[:, 0], answer)
        return net, answer

    def _noise_after(self, made: Tensor, among: Tensor | None) -> Tensor:
        """Samples of errors after `made` [B] calls, of the experts `among` [B, L]; [B, L, S]. None: all, [B, K, S]."""
        made = made.clamp(max=len(self.noise) - 1)
        return self.noise[made] if among is None else self.noise[made[:, None], among]

    def _noise(self, answers: Answers, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Samples of the changes of experts' estimates from after 0 to M - 1 calls until they, and others, have
        answered; [M, K, S]."""
        k, m = len(self.mean_cost_usd), self.max_calls
        rows = rows.repeat(DRAWS)
        estimates, answers = self.features[rows], answers[rows]
        order = torch.rand(len(rows), k, generator=generator, device=rows.device).argsort(dim=1)[:, :MANY]
        blocks = [slice(start, start + self.chunk) for start in range(0, len(rows), self.chunk)]

        def qualities(calls: int) -> Tensor:
            """After the first calls of the order."""
            parts = ((estimates[b], calls_from_table(order[b, :calls], answers[b])) for b in blocks)
            return torch.cat([self.qualities(*part) for part in parts])

        after = qualities(order.shape[1])
        half = torch.randn(k, SAMPLES // 2, generator=generator, device=rows.device)
        normal = torch.cat([half, -half], dim=1)
        noise = []
        for made in range(min(m, k)):
            moved = after - qualities(made)
            new = torch.zeros_like(moved).scatter(1, order[:, made:], 1.0)
            moved = moved * new
            cov = moved.T @ moved / (new.T @ new).clamp(min=1)
            value, vector = torch.linalg.eigh(cov.double())
            noise.append(((vector * value.clamp(min=0).sqrt()) @ vector.T).float() @ normal)
        return torch.stack(noise)

    def _tune(self, table: ExpertTable, answers: Answers, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Settings [2, 3, X] that are best at a price on the training queries `rows` [n]: prices before and after the
        first call, scale of errors; and what they cost [2, X]. Row 0 is for all but the most expensive expert."""
        k, device = len(self.mean_cost_usd), self.features.device
        prices = price_grid(self.mean_cost_usd, N_PRICES, *PRICE_ENDS)
        all_experts = torch.ones(k, dtype=torch.bool, device=device)
        others = all_experts.clone()
        others[self.mean_cost_usd.argmax()] = k == 1
        settings, spent = [], []
        for allowed, variants in ((others, VARIANTS[:1]), (all_experts, VARIANTS)):
            tried = torch.cat(
                [torch.stack([prices, later * prices, scale + 0 * prices]) for later, scale in variants], 1
            )
            score, cost_usd = self._play(table, answers, rows, tried, allowed)
            best = (score - prices[:, None] * cost_usd).argmax(dim=1)
            settings.append(tried[:, best])
            spent.append(cost_usd[best].double())
        return torch.stack(settings), torch.stack(spent).cummax(dim=1).values

    def _play(
        self, table: ExpertTable, answers: Answers, rows: Tensor, settings: Tensor, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean score and cost [P] on queries `rows` [n] with `settings` [3, P]."""
        n, k = len(rows), len(self.mean_cost_usd)
        rows = rows.repeat(settings.shape[1])
        price, later, scale = settings.repeat_interleave(n, dim=1)
        asked = torch.full((len(rows), self.max_calls), -1, device=rows.device)
        playing = torch.arange(len(rows), device=rows.device)
        for made in range(self.max_calls):
            for part in playing.split(self.chunk):
                calls = calls_from_table(asked[part, :made], answers[rows[part]])
                estimates = self.features[rows[part]]
                expert, asks = self.next_expert(
                    estimates, (later if made else price)[part], scale[part], calls, allowed.expand(len(part), k)
                )
                asked[part, made] = torch.where(asks, expert, -1)
            playing = playing[asked[playing, made] >= 0]
        experts, made_at = asked.clamp(min=0), asked >= 0
        models, chance = self.answer_model.models, self.features.score[rows]
        score = delivered_scores(asked, chance, answers[rows], table.scores[rows], models)
        cost_usd = (table.costs_usd[rows].gather(1, experts) * made_at).sum(dim=1)
        return score.view(-1, n).mean(dim=1), cost_usd.view(-1, n).mean(dim=1)

    def _setting(self, pace: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        """The settings, [B] each, at budgets per query [B], where only the n + 1 [B] cheapest experts may be asked."""
        row = (n == len(self.mean_cost_usd) - 1).long()
        spent, settings = self.spent_usd[row], self.settings[row].log()
        above = torch.searchsorted(spent, pace[:, None]).clamp(1, spent.shape[1] - 1)
        low, high = spent.gather(1, above - 1), spent.gather(1, above)
        weight = ((pace[:, None] - low) / (high - low).clamp(min=1e-30)).clamp(0, 1).float()
        ends = [settings.gather(2, at[:, None].expand(-1, 3, -1)).squeeze(2) for at in (above - 1, above)]
        return torch.lerp(ends[0], ends[1], weight).exp().unbind(1)


def delivered_scores(
    asked: Tensor, chance: Tensor, answers: Answers, scores: Tensor, models: Tensor | None = None
) -> Tensor:
    """[n], the scores of the answers that are delivered after calls to `asked` [n, C], -1 where there is none, from
    the experts' estimated chances of being right, and scores, [n, K]; `models` as in `count_votes`."""
    experts = asked.clamp(min=0)
    _, votes = told(chance, calls_from_table(asked, answers))
    ids, votes = answers.ids.gather(1, experts), votes.gather(1, experts)
    leader = count_votes(asked, asked >= 0, ids, votes, models).leader
    return torch.where(leader >= 0, scores.gather(1, leader.clamp(min=0)[:, None]).squeeze(1).float(), 0.0)
