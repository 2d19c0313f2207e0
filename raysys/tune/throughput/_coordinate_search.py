"""Coordinate search over a training's settings: the order of trials, and the incumbent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raysys.tune.throughput._bench import ROUND_S, SEEDS, Contender, ThroughputBench
from raysys.tune.throughput._candidates import has_no_effect, moves
from raysys.tune.throughput._decisions import MIN_SPEEDUP, loss_acceptable, promising_batches, rank

if TYPE_CHECKING:
    from raysys.train import TrainSettings

    SettingsSpace = Mapping[str, Sequence[Any]]

_MIN_FINALISTS = 2  # get their losses at the end, even after the deadline
_MIN_COMPILE_S = 10.0
_MAX_COMPILE_SPEEDUP = 2.0


def coordinate_search(bench: ThroughputBench, space: SettingsSpace, run_samples: int) -> None:
    """Measure changes of the defaults, one setting after another; `bench` has their speed."""
    for _ in range(SEEDS):
        bench.add_loss(0)
    incumbent = _try_moves(bench, space, Contender(0, bench.defaults))
    batched = _try_batches(bench, space, incumbent)
    if batched is not incumbent:
        incumbent = _try_moves(bench, space, batched)
    _try_compile(bench, space, incumbent, run_samples)
    _measure_losses(bench, run_samples)


def _try_moves(bench: ThroughputBench, space: SettingsSpace, incumbent: Contender) -> Contender:
    """Change one setting after another, and keep each change that is faster."""
    machine = bench.session.machine
    for move in moves(space, machine, bench.defaults.settings):
        if bench.remaining_s() < _reserve_s(bench):
            bench.note("time was up before all settings had been tried")
            break
        if not has_no_effect(move, bench.trials[incumbent.index].settings, machine):
            incumbent = _challenge(bench, move, incumbent)
    return incumbent


def _challenge(bench: ThroughputBench, move: Mapping[str, Any], incumbent: Contender) -> Contender:
    """The faster of the incumbent and a change of it."""
    challenger = bench.measure(move, incumbent)
    if challenger is None:
        return incumbent
    return _replace(bench, incumbent, challenger, won=challenger.faster)


def _replace(
    bench: ThroughputBench, incumbent: Contender, challenger: Contender, *, won: bool
) -> Contender:
    """The new incumbent; the loser is closed, unless it is the defaults."""
    winner, loser = (challenger, incumbent) if won else (incumbent, challenger)
    if loser.index:
        bench.session.close(loser.opened)
    return winner


def _try_batches(bench: ThroughputBench, space: SettingsSpace, incumbent: Contender) -> Contender:
    """Increase the batch size as long as it is faster and the loss acceptable."""
    now = bench.trials[incumbent.index].settings.batch_size
    batches = sorted(batch for batch in space.get("batch_size", []) if batch > now)
    if not batches or bench.remaining_s() < _reserve_s(bench):
        return incumbent
    # A line through two distant sizes is steadier.
    probed = batches[min(1, len(batches) - 1)]
    probe = bench.measure(_scaled(bench.defaults.settings, probed, other_rule=False), incumbent)
    promising = dict.fromkeys(batches, 1.0)
    if probe:
        step_times = [
            (batch, batch / bench.speed(contender.index))
            for batch, contender in ((now, incumbent), (probed, probe))
        ]
        promising = promising_batches(batches, step_times)
        bench.session.close(probe.opened)
    if not promising:
        bench.note("larger batches bring no more samples per second")
    for batch in sorted(promising):
        if bench.remaining_s() < _reserve_s(bench):
            bench.note("time was up before all batch sizes had been tried")
            break
        winner = _try_batch(bench, batch, incumbent)
        if winner is None:
            bench.note(f"batches of {batch} fail, or end with a higher loss")
            break
        incumbent = winner
    return incumbent


def _try_batch(bench: ThroughputBench, batch: int, incumbent: Contender) -> Contender | None:
    """The better of the incumbent and a batch size, by both rules for its learning rate.

    None if the batch size fails or the loss is higher.
    """
    for other_rule in (False, True):
        move = _scaled(bench.defaults.settings, batch, other_rule=other_rule)
        settings = bench.trials[incumbent.index].settings.model_copy(update=move)
        indices = [at for at, trial in enumerate(bench.trials) if trial.settings == settings]
        challenger = bench.reopen(indices[0]) if indices else bench.measure(move, incumbent)
        if challenger is None:
            return None
        index = challenger.index
        if bench.add_loss(index) and loss_acceptable(bench.trials[index], bench.trials[0]):
            won = bench.speed(index) > MIN_SPEEDUP * bench.speed(incumbent.index)
            return _replace(bench, incumbent, challenger, won=won)
        bench.session.close(challenger.opened)
    return None


def _scaled(settings: TrainSettings, batch: int, *, other_rule: bool) -> dict[str, Any]:
    """A batch size with its learning rate: by the optimizer's usual rule, or the other one.

    The usual one is that of `base_batch_size`: in proportion, or with the square root.
    """
    base = settings.base_batch_size or settings.batch_size
    rate = settings.learning_rate
    if other_rule:
        root = (batch / base) ** 0.5
        rate = rate / root if settings.optimizer in ("sgd", "lars") else rate * root
    return {"batch_size": batch, "base_batch_size": base, "learning_rate": rate}


def _try_compile(
    bench: ThroughputBench, space: SettingsSpace, incumbent: Contender, run_samples: int
) -> None:
    """Try torch.compile if the run is long enough to pay for it."""
    if True not in space.get("compile", []) or bench.trials[incumbent.index].settings.compile:
        return
    saving_s = run_samples / bench.speed(incumbent.index) * (1 - 1 / _MAX_COMPILE_SPEEDUP)
    if saving_s < _MIN_COMPILE_S:
        bench.note(f"compile was not tried: it could save {saving_s:.0f} s of the run")
    elif bench.remaining_s() < _reserve_s(bench) + 2 * _MIN_COMPILE_S:
        bench.note("compile was not tried: the remaining time was too short")
    else:
        _challenge(bench, {"compile": True}, incumbent)


def _measure_losses(bench: ThroughputBench, run_samples: int) -> None:
    """Measure the losses of the fastest, until one beats the defaults at an acceptable loss."""

    def beats_defaults(index: int) -> bool:
        return bench.trials[index].run_s(run_samples) < bench.trials[0].run_s(run_samples)

    ranked = [at for at, trial in enumerate(bench.trials) if at and not trial.error]
    ranked.sort(key=lambda at: rank(bench.trials[at], run_samples))
    finalists = 0
    for at in ranked:
        if not beats_defaults(at) or not _eligible(bench, at):
            continue
        if bench.remaining_s() < 0 and finalists >= _MIN_FINALISTS:
            bench.note("time was up before the losses of all faster settings were measured")
            break
        finalists += 1
        # A loss that is higher under one seed needs no further seeds.
        while len(bench.trials[at].losses) < SEEDS and bench.add_loss(at):
            if not loss_acceptable(bench.trials[at], bench.trials[0]):
                break
        if loss_acceptable(bench.trials[at], bench.trials[0]):
            bench.confirm(at)
            if beats_defaults(at):
                break
    for at in ranked:
        # Remaining time completes the Pareto front.
        if bench.remaining_s() > _reserve_s(bench) / SEEDS and not bench.trials[at].losses:
            bench.add_loss(at)


def _eligible(bench: ThroughputBench, index: int) -> bool:
    """Whether a trial may yet be recommended.

    A larger batch must have shown its loss before: it alone changes what is learned from a sample.
    """
    trial, defaults = bench.trials[index], bench.trials[0]
    if trial.losses:
        return loss_acceptable(trial, defaults)
    acceptable = (t.settings.batch_size for t in bench.trials if loss_acceptable(t, defaults))
    return trial.settings.batch_size <= max(acceptable)


def _reserve_s(bench: ThroughputBench) -> float:
    """Seconds needed at the end: the winner's losses, and a last comparison."""
    return SEEDS * bench.loss_samples / bench.speed(0) + 12 * ROUND_S
