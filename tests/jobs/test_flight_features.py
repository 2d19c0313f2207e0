"""Features of flights: definitions, independence of the future, bulk and online."""

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
    """The tables at a moment: the full timetable, but only the outcomes and weather known then."""
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
def test_features_do_not_depend_on_the_future(
    tables: small.Tables, everything: np.ndarray, moment: dt.datetime
) -> None:
    erased = forget_after(tables, moment)
    before = (_frame(tables["flights"])["departure"] <= moment).to_numpy()
    features = FlightFeatures(erased)(Flights.of(tables["flights"]))
    np.testing.assert_array_equal(features[before], everything[before])
    forgotten = (
        erased["flights"]["arr_delay"].null_count - tables["flights"]["arr_delay"].null_count
    )
    assert forgotten > 1000
    changed = (features != everything) & ~(np.isnan(features) & np.isnan(everything))
    late = changed[~before].any(axis=0)
    static = {"minute_of_day", "weekday", "block", "distance", "seats", "sched_prev60", "tail_gap"}
    static |= {"carrier_code", "origin_code", "dest_code"}
    assert {name for name, differs in zip(FEATURES, late, strict=True) if not differs} == static


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
        features = FlightFeatures({**tables, "flights": changed.to_arrow()})
        own = features(Flights.of(tables["flights"].slice(row, 1)))
        np.testing.assert_array_equal(own, everything[row : row + 1])


def test_a_request_gets_the_bulk_features(tables: small.Tables, everything: np.ndarray) -> None:
    features = FlightFeatures(tables)
    flights = tables["flights"]
    for row in range(0, len(flights), 97):
        request = FlightRequest(**request_of(flights.slice(row, 1).to_pylist()[0])).model_dump()
        columns = {name: np.array([value]) for name, value in request.items()}
        schedule = FlightGraph.schedule(None, **columns)  # type: ignore[arg-type]
        np.testing.assert_array_equal(features(schedule), everything[row : row + 1])


def test_features_of_a_block_use_all_flights(tables: small.Tables, everything: np.ndarray) -> None:
    class LocalTable:
        """A Table in this process."""

        def __init__(self, rows: pa.Table) -> None:
            self.rows = rows

        def to_arrow(self) -> pa.Table:
            return self.rows

    block = tables["flights"].slice(1000, 50)
    features = add_features(block, {name: LocalTable(rows) for name, rows in tables.items()})
    matrix = np.stack([features[name].to_numpy() for name in FEATURES], axis=1)
    np.testing.assert_array_equal(matrix, everything[1000:1050])
    delay = block["arr_delay"].to_numpy()
    assert features["late"].to_pylist() == [int(minutes > 15) for minutes in delay]


def test_unseen_keys_give_missing_features(tables: small.Tables) -> None:
    flights = Flights.of(tables["flights"].slice(2000, 1))
    unseen = {"carrier": "ZZ", "dest": "XXX", "tailnum": "N0NE", "origin": "BOS"}
    unknown = flights._replace(**{name: np.array([text]) for name, text in unseen.items()})
    features = FlightFeatures(tables)
    values = dict(zip(FEATURES, features(unknown)[0], strict=True))
    for name in ("carrier_code", "dest_code", "origin_code", "distance", "seats", "tail_gap"):
        assert np.isnan(values[name])
    assert values["carrier_queue"] == values["origin_wait"] == values["hist_flight"] == 0
    assert values["all_queue"] > 0
    assert not any(seen[0] for seen in features.knows(unknown).values())
    assert all(seen[0] for seen in features.knows(flights).values())
    far = flights._replace(departure=np.array([minutes_of("9999-12-31T23:00:00+00:00")]))
    assert np.isnan(dict(zip(FEATURES, features(far)[0], strict=True))["origin_3h_late"])


# --- definitions, by brute force ---


def brute_force(tables: small.Tables, row: int) -> dict[str, float]:
    """Features of one flight by their definitions."""
    flights = tables["flights"].to_pylist()
    places = {f["airport"]: f for f in tables["airports"].to_pylist()}
    me, at = flights[row], minutes(flights[row]["departure"])
    for f in flights:
        f["at"] = minutes(f["departure"])
        f["left"] = f["landed"] = float("inf")
        if f["dep_delay"] is not None:
            f["left"] = max(f["at"] + f["dep_delay"], f["at"])
        if f["arr_delay"] is not None:
            f["landed"] = max(f["at"] + f["block"] + f["arr_delay"], f["at"])
        place = places[f["dest"]]
        f["region"] = (place["lat"] // 4, place["lon"] // 6)

    def like_me(*names: str) -> list[dict[str, Any]]:
        return [f for f in flights if all(f[name] == me[name] for name in names)]

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    def left(span: int, *names: str) -> list[dict[str, Any]]:
        return [f for f in like_me(*names) if at - span <= f["left"] < at]

    def landed(span: int, *names: str) -> list[dict[str, Any]]:
        return [f for f in like_me(*names) if at - span <= f["landed"] < at]

    def late(group: list[dict[str, Any]]) -> float:
        return mean([f["dep_delay"] > 15 for f in group])

    def gain(group: list[dict[str, Any]]) -> float:
        return mean([np.clip(f["dep_delay"] - f["arr_delay"], -90, 60) for f in group])

    def delay(group: list[dict[str, Any]]) -> float:
        return mean([np.clip(f["arr_delay"], -40, 180) for f in group])

    def waiting(*names: str) -> list[dict[str, Any]]:
        return [f for f in like_me(*names) if at - 240 <= f["at"] < at <= f["left"]]

    features = {
        "sched_prev60": len([1 for f in like_me("origin") if at - 60 <= f["at"] < at]),
        "origin_queue": len(waiting("origin")),
        "origin_wait": sum(at - f["at"] for f in waiting("origin")),
        "all_queue": len(waiting()),
        "carrier_queue": len(waiting("carrier")),
        "region_queue": len(waiting("region")),
        "origin_30m_late": late(left(30, "origin")),
        "origin_3h_late": late(left(180, "origin")),
        "all_2h_late": late(left(120)),
        "all_24h_delay": mean([np.clip(f["dep_delay"], -15, 180) for f in left(1440)]),
        "oc_3h_delay": mean(
            [np.clip(f["dep_delay"], -15, 180) for f in left(180, "origin", "carrier")]
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
                    f["block"] + f["arr_delay"] - f["dep_delay"] - f["air_time"],
                    0,
                    120,
                )
                for f in landed(180, "origin")
            ]
        ),
        "route_10d_gain": gain(landed(14400, "dest", "carrier")),
        "flight_14d_gain": gain(landed(20160, "carrier", "flight", "dest")),
        "flight_14d_arr_delay": delay(landed(20160, "carrier", "flight", "dest")),
    }
    day, new_york = 1440, -240  # July
    past = [f for f in flights if (f["landed"] + new_york) // day < (at + new_york) // day]
    for name, by in (("hist_flight", ("carrier", "flight", "dest")),
                     ("hist_route", ("origin", "dest", "carrier"))):  # fmt: skip
        above = 0.0
        mine = [f for f in past if all(f[key] == me[key] for key in by)]
        for f in mine:
            on = (f["landed"] + new_york) // day
            so_far = [peer for peer in past if (peer["landed"] + new_york) // day <= on]
            above += (f["arr_delay"] > 15) - np.mean([o["arr_delay"] > 15 for o in so_far])
        features[name] = above / (len(mine) + 30)
    legs = [f for f in like_me("tailnum") if me["tailnum"] and at - 1440 < f["at"] < at]
    if legs:
        leg = max(legs, key=lambda f: f["at"])
        leg_delay = leg["dep_delay"] if leg["left"] < at else at - leg["at"]
        leg_delay = leg["arr_delay"] if leg["landed"] < at else leg_delay
        features["tail_gap"] = at - leg["at"]
        features["tail_prev_delay"] = leg_delay
        features["tail_slack"] = at - leg["at"] - leg_delay - 2 * leg["block"]
    hours = sorted(
        (f for f in tables["weather"].to_pylist()
         if f["origin"] == me["origin"] and minutes(f["time_hour"]) + 60 <= at),
        key=lambda f: f["time_hour"],
    )  # fmt: skip
    now = hours[-1]
    speed, angle = min(now["wind_speed"], 80), np.radians(now["wind_dir"])
    features |= {
        "humid": now["humid"],
        "wind_n": np.cos(angle) * speed,
        "wind_e": np.sin(angle) * speed,
        "precip_3h": sum(f["precip"] for f in hours[-3:]),
    }
    return features


def minutes(moment: dt.datetime) -> int:
    return int(moment.timestamp()) // 60


def test_features_equal_their_definitions(tables: small.Tables, everything: np.ndarray) -> None:
    departures = tables["flights"]["departure"].to_pylist()
    on_the_10th = [row for row, at in enumerate(departures) if at.date() == STORM.date()]
    compared = 0
    for row in np.random.default_rng(1).choice(on_the_10th, 12, replace=False):
        expected = brute_force(tables, int(row))
        features = dict(zip(FEATURES, everything[row], strict=True))
        for name, value in expected.items():
            assert features[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), name
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
    flight = _frame(add_schedule(pl.DataFrame(row).to_arrow())).row(0, named=True)
    return flight["departure"].isoformat(), flight["block"]


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
        ("2013-07-10T14:00:00+00:00", None, 1015, 1130, 75),  # unknown: New York time
    ],
)
def test_block_time_is_from_clock_to_clock(
    hour: str, zone: str | None, leaves: int, arrives: int, block: int
) -> None:
    departure, block_time = schedule_of(hour, zone, leaves, arrives)
    expected = dt.datetime.fromisoformat(hour) + dt.timedelta(minutes=leaves % 100)
    assert (dt.datetime.fromisoformat(departure), block_time) == (expected, block)


def test_daylight_saving_time_of_new_york(tables: small.Tables) -> None:
    features = FlightFeatures(tables)
    flight = Flights.of(tables["flights"].slice(0, 1))
    place, weekday = FEATURES.index("minute_of_day"), FEATURES.index("weekday")
    for moment, clock, day in (
        ("2013-03-10T06:59:00+00:00", 119, 6),
        ("2013-03-10T07:00:00+00:00", 180, 6),
        ("2013-11-03T05:30:00+00:00", 90, 6),
        ("2013-11-03T06:30:00+00:00", 90, 6),
        ("2013-11-04T04:59:00+00:00", 1439, 6),
        ("2013-11-04T05:00:00+00:00", 0, 0),
    ):
        values = features(flight._replace(departure=np.array([minutes_of(moment)])))[0]
        assert (values[place], values[weekday]) == (clock, day), moment


def test_a_request_distinguishes_repeated_clock_times() -> None:
    early, late = "2013-11-03T01:30:00-04:00", "2013-11-03T01:30:00-05:00"
    assert minutes_of(late) - minutes_of(early) == 60
    assert minutes_of("2013-12-17T23:30:00Z") == minutes_of("2013-12-17T18:30:00-05:00")
