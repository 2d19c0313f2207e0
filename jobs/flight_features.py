"""Features of a flight at its scheduled departure, in bulk and online.

T is the scheduled departure. An actual departure or arrival becomes known when it happens, but not
before the T of its flight. Features use only facts known strictly before T: neither the flight's
own outcome nor that of a flight at the same minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from jobs.flight_history import NEVER, Codes, Latest, Sums
from jobs.flight_schedule import DAY, HOUR, Flights, ahead, minutes, numbers, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

CODES = ("carrier_code", "origin_code", "dest_code")
NUMBERS = (
    "minute_of_day", "weekday", "block", "distance", "seats", "sched_prev60",
    "origin_queue", "origin_wait", "all_queue", "carrier_queue", "region_queue",
    "origin_30m_late", "origin_3h_late", "all_2h_late", "all_24h_delay", "oc_3h_delay",
    "oc_24h_late", "carrier_2h_late", "dest_6h_gain", "dest_24h_gain", "dest_24h_arr_delay",
    "region_6h_gain", "origin_arr_3h_gain", "origin_arr_3h_taxi", "route_10d_gain",
    "flight_14d_gain", "flight_14d_arr_delay", "tail_slack", "tail_gap", "tail_prev_delay",
    "hist_flight", "hist_route", "humid", "wind_n", "wind_e", "precip_3h", "pressure_3h",
)  # fmt: skip
FEATURES = (*NUMBERS, *CODES)
# Facts known before the departure; the fields of a request.
SCHEDULE = ("departure", "block", "carrier", "flight", "tailnum", "origin", "dest")

# Codes of the keys that flights share, int64 `(n,)`; -1 for unseen keys.
Keys = dict[str, np.ndarray]
LATE = 15  # minutes
_WAITS = 4 * HOUR  # a flight waits no longer than this
_PRIOR = 30  # weight of the overall rate in the rate of a flight or route, in flights
_EXACT = 2.0**20


class FlightFeatures:
    """Features of flights, from earlier flights and weather."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        """Index past events by the time at which they became known.

        Args:
            tables: Tables of `flight_etl.etl`; outcomes in `flights` may be missing.
        """
        flights = tables["flights"]
        schedule = Flights.of(flights)
        self._codes(tables, schedule)
        keys = self._keys(schedule)
        left, landed = (numbers(flights[name]) for name in ("dep_delay", "arr_delay"))
        left_at = _known_at(schedule.departure, left)
        landed_at = _known_at(schedule.departure, schedule.block + landed)
        self._schedules(keys, schedule, left_at)
        self._departures(keys, left, left_at)
        taxi = schedule.block + landed - left - numbers(flights["air_time"])
        self._arrivals(keys, left, landed, taxi, landed_at)
        self._rates(keys, schedule, landed, landed_at)
        tail = self._tails(schedule.tailnum)
        self._legs = Latest.of(
            tail, schedule.departure, block=schedule.block, left=left,
            left_at=left_at.astype(float), landed=landed, landed_at=landed_at.astype(float),
        )  # fmt: skip
        self._weather = _weather(tables["weather"], self._origin)

    def __call__(self, flights: Flights) -> np.ndarray:
        """Features of flights.

        Returns:
            float32 `(n, len(FEATURES))`, NaN for unknown values.
        """
        keys, at = self._keys(flights), flights.departure
        clock = at + ahead(at)
        tail = self._tails(flights.tailnum)
        features = {
            "minute_of_day": clock % DAY,
            "weekday": (clock // DAY + 3) % 7,
            "block": flights.block,
            "distance": self._distance[self._route(flights.origin, flights.dest)],
            "seats": self._seats[self._plane(flights.tailnum)],
            "sched_prev60": self._scheduled.within(keys["origin"], at - HOUR, at)["n"],
            "carrier_code": _code(keys["carrier"]),
            "origin_code": _code(keys["origin"]),
            "dest_code": _code(keys["dest"]),
        }
        for by, sums in self._waiting.items():
            waiting = sums.within(keys[by], 0, at)
            features[f"{by}_queue"] = waiting["n"]
            features[f"{by}_wait"] = waiting["n"] * at - waiting["since"]
        for name, by, span, value in _DEPARTED:
            features[name] = _mean(self._departed[by].within(keys[by], at - span, at), value)
        for name, by, span, value in _ARRIVED:
            features[name] = _mean(self._arrived[by].within(keys[by], at - span, at), value)
        for name, by in _RATES:
            before = self._rate[by].within(keys[by], 0, clock // DAY)
            features[name] = before["late"] / (before["n"] + _PRIOR)
        features |= self._previous_leg(tail, at) | self._weather.within(
            keys["origin"], at - 6 * HOUR, at + 1
        )
        return np.stack([features[name].astype(np.float32) for name in FEATURES], axis=1)

    def knows(self, flights: Flights) -> dict[str, np.ndarray]:
        """Whether carrier, destination and aircraft occur in the past, bool `(n,)` by name."""
        codes = {
            "carrier": self._carrier(flights.carrier),
            "dest": self._dest(flights.dest),
            "tailnum": self._tails(flights.tailnum),
        }
        return {name: code >= 0 for name, code in codes.items()}

    def _codes(self, tables: Mapping[str, pa.Table], flights: Flights) -> None:
        """Codes of carriers, airports, routes and aircraft."""
        carrier, origin, dest = flights.carrier, flights.origin, flights.dest
        self._carrier, self._origin, self._dest = Codes(carrier), Codes(origin), Codes(dest)
        self._carrier_at = Codes(origin, carrier)
        self._line = Codes(dest, carrier)
        self._carriers_route = Codes(origin, dest, carrier)
        self._number = Codes(carrier, flights.flight, dest)
        self._tails = Codes(flights.tailnum[flights.tailnum != ""])
        airports, planes, routes = (tables[name] for name in ("airports", "planes", "routes"))
        airport, tail = texts(airports["airport"]), texts(planes["tailnum"])
        ends = texts(routes["origin"]), texts(routes["dest"])
        self._airport, self._plane, self._route = Codes(airport), Codes(tail), Codes(*ends)
        # Cells of four by six degrees, in which airports share weather and ground stops.
        north, east = numbers(airports["lat"]) // 4, numbers(airports["lon"]) // 6
        self._region = _by_code(self._airport, (airport,), (north + 90) * 1000 + east + 180)
        self._seats = _by_code(self._plane, (tail,), numbers(planes["seats"]))
        self._distance = _by_code(self._route, ends, numbers(routes["distance"]))

    def _keys(self, flights: Flights) -> Keys:
        carrier, origin, dest = flights.carrier, flights.origin, flights.dest
        region = np.nan_to_num(self._region[self._airport(dest)], nan=-1)
        return {
            "all": np.zeros(len(flights.flight), np.int64),
            "origin": self._origin(origin),
            "carrier": self._carrier(carrier),
            "dest": self._dest(dest),
            "region": region.astype(np.int64),
            "carrier_at": self._carrier_at(origin, carrier),
            "line": self._line(dest, carrier),
            "route": self._carriers_route(origin, dest, carrier),
            "number": self._number(carrier, flights.flight, dest),
        }

    def _schedules(self, keys: Keys, flights: Flights, left_at: np.ndarray) -> None:
        """Scheduled and waiting flights: a flight waits from its T until it leaves."""
        departure = flights.departure
        self._scheduled = Sums.of(keys["origin"], departure, n=1.0)
        wait_end = np.minimum(left_at, departure + _WAITS)
        ones = np.ones(len(wait_end))
        self._waiting = {
            by: Sums.of(
                np.concatenate([keys[by], keys[by]]),
                np.concatenate([departure, wait_end]),
                n=np.concatenate([ones, -ones]),
                since=np.concatenate([departure, -departure]).astype(float),
            )
            for by in ("origin", "all", "carrier", "region")
        }

    def _departures(self, keys: Keys, delay: np.ndarray, at: np.ndarray) -> None:
        values = {"n": 1.0, "delay": np.clip(delay, -15, 180), "late": (delay > LATE).astype(float)}
        by = {by for _, by, _, _ in _DEPARTED}
        self._departed = {name: Sums.of(keys[name], at, **values) for name in by}

    def _arrivals(
        self, keys: Keys, left: np.ndarray, landed: np.ndarray, taxi: np.ndarray, at: np.ndarray
    ) -> None:
        values = {
            "n": 1.0,
            "gain": np.clip(left - landed, -90, 60),  # minutes made up since the departure
            "delay": np.clip(landed, -40, 180),
            "taxi": np.clip(taxi, 0, 120),
        }
        by = {by for _, by, _, _ in _ARRIVED}
        self._arrived = {name: Sums.of(keys[name], at, **values) for name in by}

    def _rates(self, keys: Keys, flights: Flights, landed: np.ndarray, at: np.ndarray) -> None:
        """Excess of lateness over all flights so far, by the day of arrival in New York."""
        late = (landed > LATE).astype(float)
        day = np.where(at < NEVER, (at + ahead(flights.departure)) // DAY, NEVER)
        total = Sums.of(keys["all"], day, n=1.0, late=late)
        so_far = total.within(keys["all"], 0, day + 1)
        overall = so_far["late"] / np.maximum(so_far["n"], 1)
        excess = late - np.round(overall * _EXACT) / _EXACT  # rounded, so that sums are exact
        self._rate = {by: Sums.of(keys[by], day, n=1.0, late=excess) for _, by in _RATES}

    def _previous_leg(self, tail: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
        """The aircraft's last flight from New York within a day, and its delay known at T.

        The delay is the arrival delay if it has landed, the departure delay if it has left, and
        the time since its T otherwise. The slack is the time between the two departures minus the
        delay and twice the block time.
        """
        leg = self._legs.within(tail, at - DAY + 1, at)
        gap = at - leg["time"]
        delay = np.where(leg["left_at"] < at, leg["left"], gap)
        delay = np.where(leg["landed_at"] < at, leg["landed"], delay)
        return {
            "tail_gap": gap,
            "tail_prev_delay": delay,
            "tail_slack": gap - delay - 2 * leg["block"],
        }


def add_features(block: pa.Table, tables: Mapping[str, Any]) -> pa.Table:
    """Features and targets of a block of flights.

    Args:
        block: Rows of `flights` that have landed.
        tables: Tables of `flight_etl.etl`.

    Returns:
        Columns of the schedule; the features, float32; `arr_delay`; `late`, 0 or 1.
    """
    features = FlightFeatures({name: table.to_arrow() for name, table in tables.items()})
    values = features(Flights.of(block))
    columns: dict[str, Any] = {name: block[name] for name in SCHEDULE if name != "block"}
    columns |= {name: pa.array(values[:, at], from_pandas=True) for at, name in enumerate(FEATURES)}
    delay = numbers(block["arr_delay"])
    columns["arr_delay"] = delay
    columns["late"] = (delay > LATE).astype(np.int8)
    return pa.table(columns)


# Name, key, minutes before T and averaged value of the features of departures and arrivals.
_DEPARTED = (
    ("origin_30m_late", "origin", 30, "late"),
    ("origin_3h_late", "origin", 3 * HOUR, "late"),
    ("all_2h_late", "all", 2 * HOUR, "late"),
    ("all_24h_delay", "all", DAY, "delay"),
    ("carrier_2h_late", "carrier", 2 * HOUR, "late"),
    ("oc_3h_delay", "carrier_at", 3 * HOUR, "delay"),
    ("oc_24h_late", "carrier_at", DAY, "late"),
)
_ARRIVED = (
    ("dest_6h_gain", "dest", 6 * HOUR, "gain"),
    ("dest_24h_gain", "dest", DAY, "gain"),
    ("dest_24h_arr_delay", "dest", DAY, "delay"),
    ("region_6h_gain", "region", 6 * HOUR, "gain"),
    ("origin_arr_3h_gain", "origin", 3 * HOUR, "gain"),
    ("origin_arr_3h_taxi", "origin", 3 * HOUR, "taxi"),
    ("route_10d_gain", "line", 10 * DAY, "gain"),
    ("flight_14d_gain", "number", 14 * DAY, "gain"),
    ("flight_14d_arr_delay", "number", 14 * DAY, "delay"),
)
_RATES = (("hist_flight", "number"), ("hist_route", "route"))


def _weather(rows: pa.Table, origins: Codes) -> Latest:
    """Weather by origin; known at the end of its hour."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    speed, angle = pl.col("wind_speed").clip(0, 80), pl.col("wind_dir").radians()
    frame = frame.sort("origin", "time_hour").with_columns(
        wind_n=angle.cos() * speed,
        wind_e=angle.sin() * speed,
        pressure=pl.col("pressure").forward_fill().over("origin"),
        precip_3h=pl.col("precip").rolling_sum(3, min_samples=1).over("origin"),
    )
    frame = frame.with_columns(
        pressure_3h=pl.col("pressure") - pl.col("pressure").shift(3).over("origin")
    )
    table = frame.to_arrow()
    names = ("humid", "wind_n", "wind_e", "precip_3h", "pressure_3h")
    return Latest.of(
        origins(texts(table["origin"])),
        minutes(table["time_hour"]) + HOUR,
        **{name: numbers(table[name]) for name in names},
    )


def _known_at(departure: np.ndarray, minutes_later: np.ndarray) -> np.ndarray:
    """Minute at which an outcome is known, at the earliest T; NEVER without an outcome."""
    present = ~np.isnan(minutes_later)
    later = np.where(present, np.maximum(minutes_later, 0), 0).astype(np.int64)
    return np.where(present, departure + later, NEVER)


def _mean(sums: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return np.where(sums["n"] > 0, sums[name] / np.maximum(sums["n"], 1), np.nan)


def _code(codes: np.ndarray) -> np.ndarray:
    return np.where(codes < 0, np.nan, codes)


def _by_code(codes: Codes, rows: tuple[np.ndarray, ...], values: np.ndarray) -> np.ndarray:
    """Values by code; NaN at -1."""
    by_code = np.full(len(codes) + 1, np.nan)
    by_code[codes(*rows)] = values
    return by_code
