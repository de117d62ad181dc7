"""Watch how two tasks get along, without waiting for the device."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from sys import intern
from typing import NamedTuple

import numpy as np
import torch

from unified_se_ss.gradients.layout import GRANULARITIES
from unified_se_ss.gradients.two_task import CombinedGradients, TwoTaskLosses

logger = logging.getLogger(__name__)

#: Edges of the histograms, as their columns' names say; what lies outside is counted in the
#: outermost bins.
COSINE_EDGES = np.linspace(-1, 1, 21)
LOG_RATIO_EDGES = np.linspace(-4, 4, 33)

#: Means over the groups where they are defined; see :func:`statistics`.
GROUP_MEANS = (
    "conflict_rate",
    "mean_cosine",
    "log10_ratio",
    "removed",
    "added",
    "lost",
    "rescaled",
    "stretch",
)
#: All means; the last is one number per step and scope.
MEANS = (*GROUP_MEANS, "cosine")
COUNTS = ("auxiliary_zero", "main_zero")
#: What is counted of whole steps; the scale of the finite ones is added up.
STEPS = ("steps", "auxiliary_nonfinite", "main_nonfinite", "finite", "auxiliary_scale")


class Steps(NamedTuple):
    """The numbers of N steps on the host, [N, G] or [N], as ``CombinedGradients`` has those of one."""

    auxiliary_squared: np.ndarray
    main_squared: np.ndarray
    product: np.ndarray
    auxiliary_weight: np.ndarray
    main_weight: np.ndarray
    auxiliary_scale: np.ndarray
    auxiliary_finite: np.ndarray
    main_finite: np.ndarray

    def select(self, which: slice | np.ndarray) -> Steps:
        return Steps(*(field[which] for field in self))


@dataclass(frozen=True)
class Statistics:
    """Sums that add up: those of two spans of steps are those of the joined span.

    ``whole`` is ordered by ``STEPS``, [5]; ``sums`` holds the sum of each of ``MEANS`` for
    each of S scopes and ``defined`` the number of its terms, [9, S]; ``counts`` is ordered
    by ``COUNTS``, [2, S]; ``largest_stretch``, [S], is 0 where there is none; ``cosines``,
    [20], and ``log_ratios``, [32], are histograms over all groups.
    """

    whole: np.ndarray
    sums: np.ndarray
    defined: np.ndarray
    counts: np.ndarray
    largest_stretch: np.ndarray
    cosines: np.ndarray
    log_ratios: np.ndarray

    @classmethod
    def none(cls, scopes: int) -> Statistics:
        means, counts = (len(MEANS), scopes), (len(COUNTS), scopes)
        bins = len(COSINE_EDGES) - 1, len(LOG_RATIO_EDGES) - 1
        shapes = (len(STEPS), means, means, counts, scopes, *bins)
        return cls(*(np.zeros(shape) for shape in shapes))

    def __add__(self, other: Statistics) -> Statistics:
        joined = {
            f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)
        }
        joined["largest_stretch"] = np.maximum(self.largest_stretch, other.largest_stretch)
        return Statistics(**joined)

    @property
    def steps(self) -> int:
        return int(self.whole[0])

    def mean(self, name: str, scope: int = 0) -> float | None:
        """One of ``MEANS``; None where it is undefined."""
        row = MEANS.index(name)
        count = self.defined[row, scope]
        return float(self.sums[row, scope] / count) if count else None

    def row(self, scopes: list[str], scope: int) -> dict:
        """One line for people and files; see :func:`statistics` for its columns."""
        stretch = float(self.largest_stretch[scope])
        return {
            "scope": scopes[scope],
            "steps": self.steps,
            "compared": int(self.defined[MEANS.index("conflict_rate"), scope]),
            **{name: self.mean(name, scope) for name in MEANS},
            "largest_stretch": stretch or None,
            **{name: int(n) for name, n in zip(COUNTS, self.counts[:, scope])},
        }

    def rows(self, scopes: list[str]) -> list[dict]:
        """One line per scope; what belongs to no single module stands in the first, ``"all"``."""
        _, auxiliary_nonfinite, main_nonfinite, finite, scale = self.whole
        lines = [self.row(scopes, scope) for scope in range(len(scopes))]
        lines[0] |= {
            "auxiliary_nonfinite": int(auxiliary_nonfinite),
            "main_nonfinite": int(main_nonfinite),
            "auxiliary_scale": float(scale / finite) if finite else None,
            "cosine_from_-1_to_1": self.cosines.astype(int).tolist(),
            "log10_ratio_from_-4_to_4": self.log_ratios.astype(int).tolist(),
        }
        return lines


def statistics(steps: Steps, members: np.ndarray) -> Statistics:
    """Add up N steps for each scope; `members`, [S, G], is 1 for the groups of a scope.

    A scope is a set of groups: all of them (the first), or those of one module. With r =
    ||g_a|| / ||g_m|| and the rule's change along g_m,

        delta = ((w_a - 1) c + (w_m - 1) b) / sqrt(b),

    and what of g_a points against g_m, opposing = max(0, -c / sqrt(b)), the means are

    =============  ========================================================================
    conflict_rate  share of the groups with c < 0
    mean_cosine    cos(g_a, g_m) of each group
    cosine         the same of all the scope's parameters as one vector, at each step
    log10_ratio    log10 r
    removed        min(opposing, max(0, delta)) / ||g_a||: opposition that the rule took out
    added          max(0, delta - opposing) / ||g_m||: what it gave along g_m beyond that
    lost           max(0, -delta) / ||g_m||: what it took away along g_m
    rescaled       share of the groups with w_a != 1
    stretch        ||w_a g_a + w_m g_m|| / ||g_a + g_m||; its largest value too
    =============  ========================================================================

    so that delta = removed ||g_a|| + (added - lost) ||g_m|| for any rule. They are taken
    over the groups in which neither gradient is zero (*compared*), and for stretch in which
    the sum does not vanish; ``auxiliary_zero`` and ``main_zero`` count the others. A step
    with a non-finite gradient counts as such and in nothing else. All but auxiliary_scale
    are free of units: a loss scale cancels.

    Example
    -------
    >>> one = np.ones((1, 4))
    >>> project = Steps(one, one, one * [-0.5, 0, 0.25, 0.5], one,
    ...                 one * [1.5, 1, 1, 1], one[:, 0], np.array([True]), np.array([True]))
    >>> found = statistics(project, one)
    >>> found.mean("conflict_rate"), found.mean("removed"), found.mean("cosine")
    (0.25, 0.125, 0.0625)
    """
    both_finite = steps.auxiliary_finite & steps.main_finite
    finite = steps.select(both_finite)
    nonfinite = (~steps.auxiliary_finite).sum(), (~steps.main_finite).sum()
    scales = finite.auxiliary_scale
    whole = [len(both_finite), *nonfinite, len(scales), scales.sum()]
    terms = _of_groups(*finite[:5])  # [8, N, G], nan where undefined
    defined = np.isfinite(terms)
    per_group = np.where(defined, terms, 0.0)
    dead = np.stack([finite.auxiliary_squared <= 0, finite.main_squared <= 0])
    cosines = _cosines(*(products @ members.T for products in finite[:3]))  # [N, S]
    stretch = per_group[GROUP_MEANS.index("stretch")].max(0, initial=0.0)
    return Statistics(
        whole=np.array(whole, dtype=float),
        sums=np.vstack([per_group.sum(1) @ members.T, np.nansum(cosines, 0)]),
        defined=np.vstack([defined.sum(1) @ members.T, np.isfinite(cosines).sum(0)]),
        counts=dead.sum(1) @ members.T,
        largest_stretch=(members * stretch).max(1, initial=0.0),
        cosines=_histogram(terms[GROUP_MEANS.index("mean_cosine")], COSINE_EDGES),
        log_ratios=_histogram(terms[GROUP_MEANS.index("log10_ratio")], LOG_RATIO_EDGES),
    )


def _of_groups(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, w_a: np.ndarray, w_m: np.ndarray
) -> np.ndarray:
    """The terms of ``GROUP_MEANS`` of each group and step, nan where undefined."""
    cosine = _cosines(a, b, c)
    compared = ~np.isnan(cosine)
    a, b = np.where(compared, a, 1.0), np.where(compared, b, 1.0)
    ratio = np.sqrt(a) / np.sqrt(b)
    opposing = np.maximum(0, -cosine)  # in units of ||g_a||, as removed
    change = (w_a - 1) * ratio * cosine + (w_m - 1)  # in units of ||g_m||, as the others
    plain = a + 2 * c + b
    made = np.maximum(0, w_a**2 * a + 2 * w_a * w_m * c + w_m**2 * b)
    vanishing = plain <= 1e-12 * (a + b)  # of such a sum only rounding is left
    terms = [
        cosine < 0,
        cosine,
        np.log10(ratio),
        np.minimum(opposing, np.maximum(0, change) / ratio),
        np.maximum(0, change - opposing * ratio),
        np.maximum(0, -change),
        w_a != 1,
        np.where(vanishing, np.nan, np.sqrt(made / np.where(vanishing, 1.0, plain))),
    ]
    return np.where(compared, np.stack(terms), np.nan)


def _cosines(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """<g_a, g_m> / (||g_a|| ||g_m||), nan where either is zero."""
    a, b = np.where(a > 0, a, np.nan), np.where(b > 0, b, np.nan)
    return (c / np.sqrt(a) / np.sqrt(b)).clip(-1, 1)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    values = values[np.isfinite(values)]
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0].astype(float)


def scopes_of(
    groups: list[str], granularity: str = "parameter", most: int = 40
) -> tuple[list[str], np.ndarray]:
    """All groups, and the modules that they belong to, at most `most`.

    Where there are more modules, the deepest are taken together with their siblings. Groups
    of ``"global"`` granularity have no modules.

    Returns
    -------
    tuple of list of str and np.ndarray
        Names of the scopes, ``"all"`` first, and which groups belong to which, 0 or 1, [S, G].

    Example
    -------
    >>> names, members = scopes_of(["a.0.weight", "a.0.bias", "a.1.weight"])
    >>> names, members.tolist()
    (['all', 'a.0', 'a.1'], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> scopes_of(["a.0.weight", "a.1.weight", "b.weight"], most=2)[0]
    ['all', 'a', 'b']
    """
    if granularity == "global":
        return ["all"], np.ones((1, len(groups)))
    of_parameter = GRANULARITIES["module"] if granularity == "parameter" else str
    modules = [of_parameter(name) or name for name in groups]
    depth = max((name.count(".") for name in modules), default=0)
    while len(set(modules)) > most and depth:
        modules = [".".join(name.split(".")[:depth]) for name in modules]
        depth -= 1
    names = list(dict.fromkeys(modules))
    members = [[float(name in ("all", m)) for m in modules] for name in ("all", *names)]
    return ["all", *names], np.array(members)


#: Longest ring: 1000 steps of 800 groups are 32 MB.
MOST_KEPT = 1000


class ConflictMonitor:
    """Keep the numbers of each step on the device; make statistics of them now and then.

    A step costs two kernels, which copy its numbers into a ring on the device, and no wait.
    When the ring is full or somebody asks, all comes to the host in one transfer, for
    :func:`~unified_se_ss.gradients.monitor.statistics`. An epoch is divided into windows of
    a fixed number of steps, whenever the transfers happen.

    Arguments
    ---------
    groups : iterable of str
        Names of the groups that the rule is applied to, [G].
    granularity : str
        As :class:`~unified_se_ss.gradients.TwoTaskGradients` takes it.
    capacity : int
        Steps that the ring holds, of 5 G + 2 numbers each; 1000 at most.

    Example
    -------
    >>> monitor = ConflictMonitor(["network.weight", "network.bias"])
    >>> one, yes = torch.ones(2).double(), torch.tensor(True)
    >>> product = torch.tensor([-0.5, 0.25]).double()
    >>> monitor.update(CombinedGradients(one, one, product, one, one, one[0], yes, yes))
    >>> monitor.read()["conflict_rate"], monitor.read()["steps"]
    (0.5, 1)
    >>> [(row["step"], row["scope"], row["mean_cosine"]) for row in monitor.windows()]
    [(1, 'all', -0.125), (1, 'network', -0.125)]
    """

    def __init__(
        self, groups: Iterable[str], granularity: str = "parameter", capacity: int = 50
    ):
        self.scopes, self._members = scopes_of(list(groups), granularity)
        self.capacity = min(max(1, capacity), MOST_KEPT)
        self._ring: torch.Tensor | None = None
        self.reset()

    def reset(self, step: int = 0, window: int | None = None) -> None:
        """Begin an epoch after `step` steps; without a `window`, in steps, the epoch is one."""
        self._step, self._window = step, window
        self._filled = 0
        self._closed: list[dict] = []
        self._open = self._epoch = Statistics.none(len(self.scopes))

    def update(self, combined: CombinedGradients) -> None:
        """Take down what one step found."""
        if self._ring is None:
            self._allocate(combined.product)
        *numbers, scale, auxiliary_finite, main_finite = combined
        row = self._filled
        torch.cat([*numbers, scale.view(1)], out=self._numbers[row])
        torch.stack([auxiliary_finite, main_finite], out=self._flags[row])
        self._filled += 1
        if self._filled == self.capacity:
            self._fetch()

    def _allocate(self, like: torch.Tensor) -> None:
        columns = 5 * len(like) + 2
        self._ring = torch.zeros(
            self.capacity, columns, dtype=torch.float64, device=like.device
        )
        self._numbers = self._ring[:, :-1]
        self._flags = self._ring[:, -1:].view(torch.bool)[:, :2]

    def _fetch(self) -> None:
        if self._ring is None or not self._filled:
            return
        rows, self._filled = self._ring[: self._filled].cpu().numpy(), 0
        flags = rows[:, -1:].view(bool)
        numbers = rows[:, :-2].reshape(len(rows), 5, self._members.shape[1])
        a, b, c, w_a, w_m = numbers.swapaxes(0, 1)
        self._add(Steps(a, b, c, w_a, w_m, rows[:, -2], flags[:, 0], flags[:, 1]))

    def _add(self, steps: Steps) -> None:
        while count := len(steps.auxiliary_scale):
            if self._window is not None:
                count = min(count, self._window - self._open.steps)
            found = statistics(steps.select(slice(count)), self._members)
            self._open, self._epoch = self._open + found, self._epoch + found
            self._step += count
            if self._open.steps == self._window:
                self._closed += self._open_rows()
                self._open = Statistics.none(len(self.scopes))
            steps = steps.select(slice(count, None))

    def _open_rows(self) -> list[dict]:
        if not self._open.steps:
            return []
        return [{"step": self._step, **row} for row in self._open.rows(self.scopes)]

    def read(self) -> dict:
        """Steps, conflict rate, mean cosine and non-finite steps of the epoch so far.

        Rate and cosine are None where nothing was compared. At most one transfer.
        """
        self._fetch()
        return {
            **dict(zip(STEPS[:3], map(int, self._epoch.whole))),
            "conflict_rate": self._epoch.mean("conflict_rate"),
            "mean_cosine": self._epoch.mean("mean_cosine"),
        }

    def windows(self) -> list[dict]:
        """The windows of the epoch so far, the last of which may be short.

        One row per window and scope: ``step``, the last one's number; ``scope``, ``"all"`` or a
        module's name; ``steps``, ``compared`` and what
        :func:`~unified_se_ss.gradients.monitor.statistics` explains. Non-finite steps, the mean
        of auxiliary_scale and histograms (lists of counts; the name says what their bins span)
        are in the rows of ``"all"``.
        """
        self._fetch()
        return self._closed + self._open_rows()

    def state_dict(self) -> dict:
        self._fetch()
        tensors = {
            name: {key: torch.from_numpy(value) for key, value in asdict(found).items()}
            for name, found in (("open", self._open), ("epoch", self._epoch))
        }
        return {
            "step": self._step,
            "window": self._window,
            # A pickle holds one text once, by identity: the same bytes after a resume.
            "closed": [
                {intern(k): _interned(v) for k, v in r.items()} for r in self._closed
            ],
            **tensors,
        }

    def load_state_dict(self, state: dict) -> None:
        self.reset(state["step"], state["window"])
        self._closed = list(state["closed"])
        self._open, self._epoch = (
            Statistics(**{key: value.numpy() for key, value in state[name].items()})
            for name in ("open", "epoch")
        )


def _interned(value: object) -> object:
    return intern(value) if isinstance(value, str) else value


class NonFiniteMonitor:
    """Names the batches of a run whose losses or gradients are not finite, in the log.

    A step leaves flags on the device and the items' names on the host. Nothing is fetched
    until :meth:`flush`, which is called where the device is read anyhow.

    Example
    -------
    >>> from unified_se_ss.gradients import TaskLoss
    >>> monitor = NonFiniteMonitor()
    >>> losses = TwoTaskLosses(TaskLoss.of(torch.tensor([1.0, torch.nan])))
    >>> monitor.record("epoch 1, batch 3", ["a", "b"], losses)
    >>> monitor.flush()
    [{'place': 'epoch 1, batch 3', 'ids': ['a', 'b'], 'found': ['main loss']}]
    """

    def __init__(self) -> None:
        self._pending: list[tuple[dict, list[dict]]] = []
        self._since_step: list[dict] = []

    def record(
        self,
        place: str,
        ids: Iterable,
        losses: TwoTaskLosses,
        combined: CombinedGradients | None = None,
    ) -> None:
        """Keep the flags of one batch.

        Arguments
        ---------
        place : str
            Of the batch in the run.
        ids : sequence of str
            Of its items.
        losses : TwoTaskLosses
        combined : CombinedGradients, optional
            Of the step that ends with this batch; its flags concern all batches since the
            last one.
        """
        batch: dict = {"place": place, "ids": list(map(str, ids)), "found": []}
        self._since_step.append(batch)
        flags = {
            f"{task} loss": loss.total.detach().isfinite()
            for task, loss in losses._asdict().items()
            if loss is not None
        }
        self._pending.append((flags, [batch]))
        if combined is not None:
            flags = {
                "main gradient": combined.main_finite,
                "auxiliary gradient": combined.auxiliary_finite,
            }
            self._pending.append((flags, self._since_step))
            self._since_step = []

    def flush(self) -> list[dict]:
        """Fetch the flags in one transfer; log and return the batches that were not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        flags = [flag for of_batch, _ in pending for flag in of_batch.values()]
        finite = iter(torch.stack(flags).tolist())
        bad: list[dict] = []
        for names, batches in pending:
            found = [name for name in names if not next(finite)]
            # A loss that is not finite makes the gradients so, which is no news.
            bad += [b | {"found": found} for b in batches if found and not b["found"]]
            for batch in batches:
                batch["found"] += found
        for batch in bad:
            what, ids = ", ".join(batch["found"]), ", ".join(batch["ids"])
            logger.warning(f"{batch['place']}: not finite: {what}; its items: {ids}")
        return bad
