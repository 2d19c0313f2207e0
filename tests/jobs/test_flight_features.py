"""Features of flights: what they are, that they know nothing of the future, bulk and online."""

import datetime as dt
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from jobs.flight_etl import add_schedule
from jobs.flight_features import FEATURES, FlightFeatures, add_features
from jobs.flight_graph import FlightGraph, FlightRequest, minutes_of, request_of
from jobs.flight_schedule import Flights
from tests.jobs import flights as small

WEEK = ("2013-07-06", "2013-07-13")  # storms on the 7th, 8th and 10th
STORM = dt.datetime(2013, 7, 10, 21, 30, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def tables() -> small.Tables:
    return small.tables(*WEEK)


@pytest.fixture(scope="module")
def everything(tables: small.Tables) -> np.ndarray:
    return FlightFeatures(tables)(Flights.of(tables["flights"]))


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def forget_after(tables: small.Tables, moment: dt.datetime) -> small.Tables:
    """The tables as they stood then: timetable whole, outcomes and weather only what was known."""
    at = pl.lit(moment)
    delay = pl.max_horizontal("dep_delay", pl.lit(0))
    left = pl.col("departure") + pl.duration(minutes=delay) < at
    later = pl.max_horizontal(pl.col("block") + pl.col("arr_delay"), 0)
    landed = pl.col("departure") + pl.duration(minutes=later) < at
    flights = _frame(tables["flights"]).with_columns(
        dep_delay=pl.when(left).then("dep_delay"),
        arr_delay=pl.when(landed).then("arr_delay"),
        air_time=pl.when(landed).then("air_time"),
    )
    weather = _frame(tables["weather"]).filter(pl.col("time_hour") + pl.duration(hours=1) <= at)
    return {**tables, "flights": flights.to_arrow(), "weather": weather.to_arrow()}


@pytest.mark.parametrize("moment", [STORM, STORM + dt.timedelta(hours=17)])
def test_forgetting_the_future_changes_no_feature(
    tables: small.Tables, everything: np.ndarray, moment: dt.datetime
) -> None:
    erased = forget_after(tables, moment)
    before = (_frame(tables["flights"])["departure"] <= moment).to_numpy()
    found = FlightFeatures(erased)(Flights.of(tables["flights"]))
    np.testing.assert_array_equal(found[before], everything[before])
    forgotten = (
        erased["flights"]["arr_delay"].null_count - tables["flights"]["arr_delay"].null_count
    )
    assert forgotten > 1000
    changed = (found != everything) & ~(np.isnan(found) & np.isnan(everything))
    late = changed[~before].any(axis=0)
    known = {"minute_of_day", "weekday", "block", "distance", "seats", "sched_prev60", "tail_gap"}
    known |= {"carrier_code", "origin_code", "dest_code"}
    assert {name for name, one in zip(FEATURES, late, strict=True) if not one} == known


def test_a_flights_own_outcome_is_not_among_its_features(
    tables: small.Tables, everything: np.ndarray
) -> None:
    flights = _frame(tables["flights"])
    for row in (0, 777, len(flights) - 1):
        mine = pl.int_range(pl.len()) == row
        changed = flights.with_columns(
            dep_delay=pl.when(mine).then(-60).otherwise("dep_delay"),
            arr_delay=pl.when(mine).then(-200).otherwise("arr_delay"),
        )
        found = FlightFeatures({**tables, "flights": changed.to_arrow()})
        one = found(Flights.of(tables["flights"].slice(row, 1)))
        np.testing.assert_array_equal(one, everything[row : row + 1])


def test_one_request_gets_what_the_table_gets(tables: small.Tables, everything: np.ndarray) -> None:
    features = FlightFeatures(tables)
    flights = tables["flights"]
    for row in range(0, len(flights), 97):
        request = FlightRequest(**request_of(flights.slice(row, 1).to_pylist()[0])).model_dump()
        asked = {name: np.array([value]) for name, value in request.items()}
        schedule = FlightGraph.schedule(None, **asked)  # type: ignore[arg-type]
        np.testing.assert_array_equal(features(schedule), everything[row : row + 1])


def test_blocks_get_their_features_from_all_flights(
    tables: small.Tables, everything: np.ndarray
) -> None:
    class Held:
        """A Table in this process."""

        def __init__(self, rows: pa.Table) -> None:
            self.rows = rows

        def to_arrow(self) -> pa.Table:
            return self.rows

    block = tables["flights"].slice(1000, 50)
    made = add_features(block, {name: Held(rows) for name, rows in tables.items()})
    found = np.stack([made[name].to_numpy() for name in FEATURES], axis=1)
    np.testing.assert_array_equal(found, everything[1000:1050])
    delay = block["arr_delay"].to_numpy()
    assert made["late"].to_pylist() == [int(minutes > 15) for minutes in delay]


def test_what_nobody_has_seen_is_missing(tables: small.Tables) -> None:
    flights = Flights.of(tables["flights"].slice(2000, 1))
    unseen = {"carrier": "ZZ", "dest": "XXX", "tailnum": "N0NE", "origin": "BOS"}
    strange = flights._replace(**{name: np.array([text]) for name, text in unseen.items()})
    features = FlightFeatures(tables)
    found = dict(zip(FEATURES, features(strange)[0], strict=True))
    for name in ("carrier_code", "dest_code", "origin_code", "distance", "seats", "tail_gap"):
        assert np.isnan(found[name])
    assert found["carrier_queue"] == found["origin_wait"] == found["hist_flight"] == 0
    assert found["all_queue"] > 0
    assert not any(seen[0] for seen in features.knows(strange).values())
    assert all(seen[0] for seen in features.knows(flights).values())
    far = flights._replace(departure=np.array([minutes_of("9999-12-31T23:00:00+00:00")]))
    assert np.isnan(dict(zip(FEATURES, features(far)[0], strict=True))["origin_3h_late"])


# --- definitions, by walking all flights ---


def brute_force(tables: small.Tables, row: int) -> dict[str, float]:
    """The features of one flight by their definitions."""
    flights = tables["flights"].to_pylist()
    places = {one["airport"]: one for one in tables["airports"].to_pylist()}
    me, at = flights[row], minutes(flights[row]["departure"])
    for one in flights:
        one["at"] = minutes(one["departure"])
        one["left"] = one["landed"] = float("inf")
        if one["dep_delay"] is not None:
            one["left"] = max(one["at"] + one["dep_delay"], one["at"])
        if one["arr_delay"] is not None:
            one["landed"] = max(one["at"] + one["block"] + one["arr_delay"], one["at"])
        place = places[one["dest"]]
        one["region"] = (place["lat"] // 4, place["lon"] // 6)

    def like_me(*names: str) -> list[dict[str, Any]]:
        return [one for one in flights if all(one[name] == me[name] for name in names)]

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    def left(span: int, *names: str) -> list[dict[str, Any]]:
        return [one for one in like_me(*names) if at - span <= one["left"] < at]

    def landed(span: int, *names: str) -> list[dict[str, Any]]:
        return [one for one in like_me(*names) if at - span <= one["landed"] < at]

    def late(some: list[dict[str, Any]]) -> float:
        return mean([one["dep_delay"] > 15 for one in some])

    def gain(some: list[dict[str, Any]]) -> float:
        return mean([np.clip(one["dep_delay"] - one["arr_delay"], -90, 60) for one in some])

    def delay(some: list[dict[str, Any]]) -> float:
        return mean([np.clip(one["arr_delay"], -40, 180) for one in some])

    def waiting(*names: str) -> list[dict[str, Any]]:
        return [one for one in like_me(*names) if at - 240 <= one["at"] < at <= one["left"]]

    found = {
        "sched_prev60": len([1 for one in like_me("origin") if at - 60 <= one["at"] < at]),
        "origin_queue": len(waiting("origin")),
        "origin_wait": sum(at - one["at"] for one in waiting("origin")),
        "all_queue": len(waiting()),
        "carrier_queue": len(waiting("carrier")),
        "region_queue": len(waiting("region")),
        "origin_30m_late": late(left(30, "origin")),
        "origin_3h_late": late(left(180, "origin")),
        "all_2h_late": late(left(120)),
        "all_24h_delay": mean([np.clip(one["dep_delay"], -15, 180) for one in left(1440)]),
        "oc_3h_delay": mean(
            [np.clip(one["dep_delay"], -15, 180) for one in left(180, "origin", "carrier")]
        ),
        "oc_24h_late": late(left(1440, "origin", "carrier")),
        "carrier_2h_late": late(left(120, "carrier")),
        "dest_6h_gain": gain(landed(360, "dest")),
        "dest_24h_gain": gain(landed(1440, "dest")),
        "dest_24h_arr_delay": delay(landed(1440, "dest")),
        "region_6h_gain": gain(landed(360, "region")),
        "origin_arr_3h_gain": gain(landed(180, "origin")),
        "origin_arr_3h_taxi": mean(
            [
                np.clip(
                    one["block"] + one["arr_delay"] - one["dep_delay"] - one["air_time"], 0, 120
                )
                for one in landed(180, "origin")
            ]
        ),
        "route_10d_gain": gain(landed(14400, "dest", "carrier")),
        "flight_14d_gain": gain(landed(20160, "carrier", "flight", "dest")),
        "flight_14d_arr_delay": delay(landed(20160, "carrier", "flight", "dest")),
    }
    day, new_york = 1440, -240  # July
    past = [one for one in flights if (one["landed"] + new_york) // day < (at + new_york) // day]
    for name, by in (("hist_flight", ("carrier", "flight", "dest")),
                     ("hist_route", ("origin", "dest", "carrier"))):  # fmt: skip
        above = 0.0
        mine = [one for one in past if all(one[key] == me[key] for key in by)]
        for one in mine:
            on = (one["landed"] + new_york) // day
            so_far = [other for other in past if (other["landed"] + new_york) // day <= on]
            above += (one["arr_delay"] > 15) - np.mean([o["arr_delay"] > 15 for o in so_far])
        found[name] = above / (len(mine) + 30)
    legs = [one for one in like_me("tailnum") if me["tailnum"] and at - 1440 < one["at"] < at]
    if legs:
        leg = max(legs, key=lambda one: one["at"])
        known = leg["dep_delay"] if leg["left"] < at else at - leg["at"]
        known = leg["arr_delay"] if leg["landed"] < at else known
        found["tail_gap"] = at - leg["at"]
        found["tail_prev_delay"] = known
        found["tail_slack"] = at - leg["at"] - known - 2 * leg["block"]
    hours = sorted(
        (one for one in tables["weather"].to_pylist()
         if one["origin"] == me["origin"] and minutes(one["time_hour"]) + 60 <= at),
        key=lambda one: one["time_hour"],
    )  # fmt: skip
    now = hours[-1]
    speed, angle = min(now["wind_speed"], 80), np.radians(now["wind_dir"])
    found |= {
        "humid": now["humid"],
        "wind_n": np.cos(angle) * speed,
        "wind_e": np.sin(angle) * speed,
        "precip_3h": sum(one["precip"] for one in hours[-3:]),
    }
    return found


def minutes(moment: dt.datetime) -> int:
    return int(moment.timestamp()) // 60


def test_features_are_what_their_definitions_say(
    tables: small.Tables, everything: np.ndarray
) -> None:
    departures = tables["flights"]["departure"].to_pylist()
    on_the_10th = [row for row, at in enumerate(departures) if at.date() == STORM.date()]
    compared = 0
    for row in np.random.default_rng(1).choice(on_the_10th, 12, replace=False):
        expected = brute_force(tables, int(row))
        found = dict(zip(FEATURES, everything[row], strict=True))
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), name
        compared += len([1 for value in expected.values() if value == value])
    assert compared > 12 * 25


# --- clocks ---


def schedule_of(hour: str, zone: str | None, leaves: int, arrives: int) -> tuple[str, int]:
    """Departure in UTC and block time of one flight."""
    moment = dt.datetime.fromisoformat(hour)
    row = {
        "time_hour": [moment], "minute": [leaves % 100], "sched_dep_time": [leaves],
        "sched_arr_time": [arrives], "zone": [zone], "carrier": ["AA"], "flight": [1],
        "tailnum": ["N1"], "origin": ["JFK"], "dest": ["XXX"], "dep_delay": [0],
        "arr_delay": [0], "air_time": [60],
    }  # fmt: skip
    made = _frame(add_schedule(pl.DataFrame(row).to_arrow())).row(0, named=True)
    return made["departure"].isoformat(), made["block"]


@pytest.mark.parametrize(
    ("hour", "zone", "leaves", "arrives", "block"),
    [
        ("2013-07-10T14:00:00+00:00", "America/New_York", 1015, 1130, 75),
        ("2013-07-10T14:00:00+00:00", "America/Los_Angeles", 1015, 1330, 375),
        ("2013-07-10T14:00:00+00:00", "America/Phoenix", 1015, 1230, 315),  # three hours behind
        ("2013-01-10T15:00:00+00:00", "America/Phoenix", 1015, 1230, 255),  # two in winter
        ("2013-01-10T15:00:00+00:00", "Pacific/Honolulu", 1015, 1555, 640),
        ("2013-07-11T03:00:00+00:00", "America/Puerto_Rico", 2359, 345, 226),  # over midnight
        ("2013-01-11T04:00:00+00:00", "America/Puerto_Rico", 2359, 445, 226),  # an hour ahead
        ("2013-07-10T14:00:00+00:00", None, 1015, 1130, 75),  # not known: taken for New York's
    ],
)
def test_block_time_is_from_clock_to_clock(
    hour: str, zone: str | None, leaves: int, arrives: int, block: int
) -> None:
    departure, found = schedule_of(hour, zone, leaves, arrives)
    expected = dt.datetime.fromisoformat(hour) + dt.timedelta(minutes=leaves % 100)
    assert (dt.datetime.fromisoformat(departure), found) == (expected, block)


def test_the_clock_of_new_york_knows_both_changes(tables: small.Tables) -> None:
    features = FlightFeatures(tables)
    one = Flights.of(tables["flights"].slice(0, 1))
    place, weekday = FEATURES.index("minute_of_day"), FEATURES.index("weekday")
    for moment, clock, day in (
        ("2013-03-10T06:59:00+00:00", 119, 6),
        ("2013-03-10T07:00:00+00:00", 180, 6),
        ("2013-11-03T05:30:00+00:00", 90, 6),
        ("2013-11-03T06:30:00+00:00", 90, 6),
        ("2013-11-04T04:59:00+00:00", 1439, 6),
        ("2013-11-04T05:00:00+00:00", 0, 0),
    ):
        found = features(one._replace(departure=np.array([minutes_of(moment)])))[0]
        assert (found[place], found[weekday]) == (clock, day), moment


def test_a_request_says_which_of_two_equal_clocks_it_means() -> None:
    early, late = "2013-11-03T01:30:00-04:00", "2013-11-03T01:30:00-05:00"
    assert minutes_of(late) - minutes_of(early) == 60
    assert minutes_of("2013-12-17T23:30:00Z") == minutes_of("2013-12-17T18:30:00-05:00")
