"""The order in which configurations of a training are tried, and what becomes the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysys.tune.throughput._candidates import moves, useless
from raysys.tune.throughput._decisions import WORTH, no_worse, promising_batches, rank
from raysys.tune.throughput._measurement import ROUND_S, SEEDS, Bench, Way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raysys.train import TrainSettings

_HELD = 2  # to their losses at the end, whatever the time
_COMPILING_S = 10.0  # at the least
_COMPILED = 2.0  # times as fast, at the most


def search(bench: Bench, space: Mapping[str, Sequence[Any]], whole: int) -> None:
    """Find what is better than the defaults.

    Args:
        bench: Has measured the defaults' speed.
        space: Values by the setting's name.
        whole: Samples of the run that is tuned.
    """
    for _ in range(SEEDS):
        bench.add_loss(0)
    best = _moves(bench, space, Way(0, bench.defaults))
    batched = _batches(bench, space, best)
    if batched is not best:
        best = _moves(bench, space, batched)
    _compile(bench, space, best, whole)
    _finish(bench, whole)


def _moves(bench: Bench, space: Mapping[str, Sequence[Any]], best: Way) -> Way:
    """One setting after another, each kept if it is faster."""
    machine = bench.session.machine
    for move in moves(space, machine, bench.defaults.settings):
        if bench.left() < _reserve(bench):
            bench.note("time was up before all settings had been tried")
            break
        if not useless(move, bench.tried[best.place].settings, machine):
            best = _challenge(bench, move, best)
    return best


def _challenge(bench: Bench, move: Mapping[str, Any], best: Way) -> Way:
    """The better of the best so far and a change of it."""
    found = bench.measure(move, best)
    if found is None:
        return best
    return _kept(bench, found, best) if found.won else _kept(bench, best, found)


def _kept(bench: Bench, winner: Way, loser: Way) -> Way:
    """Close the loser, unless it is the defaults."""
    if loser.place:
        bench.session.close(loser.opened)
    return winner


def _batches(bench: Bench, space: Mapping[str, Sequence[Any]], best: Way) -> Way:
    """Larger batches, as long as they are faster and the loss is no worse."""
    now = bench.tried[best.place].settings.batch_size
    batches = sorted(batch for batch in space.get("batch_size", []) if batch > now)
    if not batches or bench.left() < _reserve(bench):
        return best
    # The line through two sizes is steadier if they are apart.
    probed = batches[min(1, len(batches) - 1)]
    probe = bench.measure(_scaled(bench.defaults.settings, probed, other_rule=False), best)
    promising = dict.fromkeys(batches, 1.0)
    if probe:
        known = [(now, now / bench.speed(best.place)), (probed, probed / bench.speed(probe.place))]
        promising = promising_batches(batches, known)
        bench.session.close(probe.opened)
    if not promising:
        bench.note("larger batches bring no more samples per second")
    for batch in sorted(promising):
        if bench.left() < _reserve(bench):
            bench.note("time was up before all batch sizes had been tried")
            break
        found = _batch(bench, batch, best)
        if found is None:
            bench.note(f"batches of {batch} do not work, or end with a worse loss")
            break
        best = found
    return best


def _batch(bench: Bench, batch: int, best: Way) -> Way | None:
    """The better of the best so far and a batch size, by both rules for its learning rate.

    Returns:
        None if the batch size fails or the loss is worse.
    """
    for other_rule in (False, True):
        move = _scaled(bench.defaults.settings, batch, other_rule=other_rule)
        settings = bench.tried[best.place].settings.model_copy(update=move)
        known = [at for at, one in enumerate(bench.tried) if one.settings == settings]
        found = bench.again(known[0]) if known else bench.measure(move, best)
        if found is None:
            return None
        if bench.add_loss(found.place) and no_worse(bench.tried[found.place], bench.tried[0]):
            won = bench.speed(found.place) > WORTH * bench.speed(best.place)
            return _kept(bench, found, best) if won else _kept(bench, best, found)
        bench.session.close(found.opened)
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


def _compile(bench: Bench, space: Mapping[str, Sequence[Any]], best: Way, whole: int) -> None:
    """torch.compile, where it can earn the time that it takes."""
    if True not in space.get("compile", []) or bench.tried[best.place].settings.compile:
        return
    saves = whole / bench.speed(best.place) * (1 - 1 / _COMPILED)
    if saves < _COMPILING_S:
        bench.note(f"compile was not tried: it could save {saves:.0f} s of the whole run")
    elif bench.left() < _reserve(bench) + 2 * _COMPILING_S:
        bench.note("compile was not tried: the time was too short for it")
    else:
        _challenge(bench, {"compile": True}, best)


def _finish(bench: Bench, whole: int) -> None:
    """Hold the fastest against the defaults, until one is faster with a loss no worse."""
    ways = [at for at, one in enumerate(bench.tried) if at and not one.failed]
    ways.sort(key=lambda at: rank(bench.tried[at], whole))
    held = 0
    for at in ways:
        faster = bench.tried[at].run_s(whole) < bench.tried[0].run_s(whole)
        if not faster or not _eligible(bench, at):
            continue
        if bench.left() < 0 and held >= _HELD:
            bench.note("time was up before all that were faster had been held to their losses")
            break
        held += 1
        # A loss that is bad under one seed needs no others.
        while len(bench.tried[at].losses) < SEEDS and bench.add_loss(at):
            if not no_worse(bench.tried[at], bench.tried[0]):
                break
        if no_worse(bench.tried[at], bench.tried[0]):
            bench.confirm(at)
            if bench.tried[at].run_s(whole) < bench.tried[0].run_s(whole):
                break
    for at in ways:
        # What is left goes into the front.
        if bench.left() > _reserve(bench) / SEEDS and not bench.tried[at].losses:
            bench.add_loss(at)


def _eligible(bench: Bench, place: int) -> bool:
    """Whether a configuration may yet be recommended.

    A larger batch must have shown its loss before: it is the one thing here that changes what is
    learned from a sample.
    """
    tried = bench.tried[place]
    if tried.losses:
        return no_worse(tried, bench.tried[0])
    return tried.settings.batch_size <= _shown(bench)


def _shown(bench: Bench) -> int:
    """The largest batch size whose loss was no worse."""
    sizes = [one.settings.batch_size for one in bench.tried if no_worse(one, bench.tried[0])]
    return max(sizes)


def _reserve(bench: Bench) -> float:
    """Seconds that the end needs: the winner's losses, and a last comparison."""
    return SEEDS * bench.samples / bench.speed(0) + 12 * ROUND_S
