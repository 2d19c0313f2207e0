"""The serving graph: from a flight's schedule to the probability of a late arrival."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xgboost
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from jobs.flight_etl import HOME
from jobs.flight_features import LATE, FlightFeatures
from jobs.flight_mlp import build_network
from jobs.flight_models import Models
from jobs.flight_schedule import Flights
from raysys.features import FittedFeaturizer
from raysys.models import LogisticBlend
from raysys.serve import Graph, LazyModel, LazyObject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ray import ObjectRef

    from raysys.data import Table
    from raysys.models import StoredModel
    from raysys.storage import Storage

_TABLES = ("flights", "weather", "airports", "planes", "routes")
_BUSY_HOUR = datetime(2013, 12, 17, 18, 30, tzinfo=ZoneInfo(HOME))
_MAX_DURATION = 1440  # minutes from departure to arrival


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


class FlightRequest(BaseModel):
    """A flight's schedule; earlier flights and weather are stored with the model."""

    carrier: str = Field(max_length=8, description="two characters such as B6")
    flight: int = Field(ge=0, le=99_999, description="flight number")
    tailnum: Annotated[str, BeforeValidator(_or_empty)] = Field(
        "", max_length=8, description="aircraft; null or empty if unknown"
    )
    origin: str = Field(max_length=8, description="EWR, JFK or LGA")
    dest: str = Field(max_length=8, description="destination airport such as SFO")
    sched_dep: str = Field(description="ISO 8601 with an offset: 2013-12-17T18:30:00-05:00")
    sched_arr: str = Field(description="ISO 8601 with an offset; at most a day later")

    @field_validator("sched_dep")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        minutes_of(text)
        return text

    @field_validator("sched_arr")
    @classmethod
    def _follows_the_departure(cls, text: str, info: ValidationInfo) -> str:
        arrival, departure = minutes_of(text), info.data.get("sched_dep")
        if departure is not None and not 0 < arrival - minutes_of(departure) <= _MAX_DURATION:
            raise ValueError(f"must be at most a day later than sched_dep, {departure}")
        return text


class FlightResponse(BaseModel):
    """The prediction."""

    probability_late: float = Field(description=f"probability of over {LATE} minutes late")
    late: bool = Field(description="whether the probability is over 0.5")
    boosted: float = Field(description="log-odds of the trees")
    network: float = Field(description="log-odds of the network")
    unknown: list[str] = Field(description="fields with a value of no earlier flight")


SIGNATURE = {
    "request": FlightRequest.model_json_schema(),
    "response": FlightResponse.model_json_schema(),
}


class FlightGraph:
    """Nodes of the graph over a stored model and its history of flights."""

    def __init__(self, model: Path) -> None:
        """Load a model from its folder."""
        self._features = FlightFeatures(
            {name: pq.read_table(model / f"{name}.parquet") for name in _TABLES}
        )
        parameters = torch.load(model / "network.pt", weights_only=True)
        self._models = Models(
            xgboost.Booster(model_file=model / "boosted.ubj"),
            FittedFeaturizer.load(model / "featurizer"),
            build_network(parameters),
        )
        self._blend = LogisticBlend(**json.loads((model / "blend.json").read_text()))

    def schedule(
        self, carrier: np.ndarray, flight: np.ndarray, tailnum: np.ndarray, origin: np.ndarray,
        dest: np.ndarray, sched_dep: np.ndarray, sched_arr: np.ndarray,
    ) -> Flights:  # fmt: skip
        """Schedules as inputs of the features."""
        departure, arrival = (
            np.array([minutes_of(text) for text in times], np.int64)
            for times in (sched_dep, sched_arr)
        )
        texts = (np.asarray(texts, np.str_) for texts in (tailnum, origin, dest))
        block = (arrival - departure).astype(float)
        return Flights(departure, block, np.asarray(carrier, np.str_), flight, *texts)

    def features(self, schedule: Flights) -> np.ndarray:
        """Features, float32 `(n, len(FEATURES))`."""
        return self._features(schedule)

    def boosted(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the trees."""
        return self._models.boosted(features)

    def network(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of the network."""
        return self._models.network(features)

    def answer(
        self, schedule: Flights, boosted: np.ndarray, network: np.ndarray
    ) -> list[dict[str, Any]]:
        """Responses, in the form of `FlightResponse`."""
        is_known = self._features.knows(schedule)
        probability = self._blend.probability(np.stack([boosted, network], axis=1))
        return [
            {
                "probability_late": float(chance),
                "late": bool(chance > 0.5),
                "boosted": float(boosted[row]),
                "network": float(network[row]),
                "unknown": [name for name, mask in is_known.items() if not mask[row]],
            }
            for row, chance in enumerate(probability)
        ]


def write_model(
    tables: Mapping[str, Table], trained: ObjectRef, blend: LogisticBlend, folder: Path
) -> None:
    """Write the files that `FlightGraph` loads; `trained` is a reference to a `Trained`."""
    import ray

    booster, featurizer, network = ray.get(trained)
    for name in _TABLES:
        pq.write_table(tables[name].to_arrow(), folder / f"{name}.parquet")
    (folder / "boosted.ubj").write_bytes(booster)
    featurizer.save(folder / "featurizer")
    torch.save(network, folder / "network.pt")
    (folder / "blend.json").write_text(json.dumps(asdict(blend)))


def build_graph(flights: FlightGraph | LazyObject, output: str = "answer") -> Graph:
    """The graph over a model that is loaded, or loaded by each replica."""
    return Graph(
        inputs=FlightRequest,
        nodes={
            name: getattr(flights, name)
            for name in ("schedule", "features", "boosted", "network", "answer")
        },
        output=output,
        response=FlightResponse,
    )


def endpoint_graph(storage: Storage, model: StoredModel) -> Graph:
    """The served graph."""
    return build_graph(LazyModel(FlightGraph, storage, model))


def minutes_of(text: str) -> int:
    """Minutes since 1970 in UTC of an ISO 8601 time.

    Raises:
        ValueError: The text is not a time, or has no offset.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("write the time in ISO 8601, such as 2013-12-17T18:30:00-05:00") from None
    if moment.tzinfo is None:
        raise ValueError("write the time with its offset from UTC, such as -05:00 or Z")
    return int(moment.timestamp() // 60)


def request_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The request for a flight of `flight_etl.etl`."""
    departure = row["departure"].astimezone(ZoneInfo(HOME))
    arrival = departure + timedelta(minutes=row["block"])
    names = ("carrier", "flight", "tailnum", "origin", "dest")
    return {
        **{name: row[name] for name in names},
        "sched_dep": departure.isoformat(),
        "sched_arr": arrival.isoformat(),
    }


def example_flight(flights: Table) -> dict[str, Any]:
    """The first landed flight from a busy hour on, else the last landed one."""
    landed = flights.to_arrow().sort_by("departure")
    landed = landed.filter(pc.is_valid(landed["arr_delay"]))
    later = landed.filter(pc.greater_equal(landed["departure"], pa.scalar(_BUSY_HOUR)))
    return (later if len(later) else landed.slice(len(landed) - 1)).slice(0, 1).to_pylist()[0]
