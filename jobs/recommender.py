"""Film recommendations: raw ratings in, an HTTP endpoint out.

Run it with `python -m jobs.recommender`, here or under `ray job submit`; `--help` lists the
settings. `make_job` connects the steps; the functions below are the steps.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import polars as pl
import ray
from pydantic import BaseModel, Field

from jobs import film_etl, film_graph, film_ranker, film_retrieval, peers
from jobs.two_tower import TwoTower
from raysys import serve, train, tune, workflow
from raysys.data import Table
from raysys.index import VectorIndex
from raysys.models import ModelStore
from raysys.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from raysys.models import StoredModel
    from raysys.workflow import Run

Tables = dict[str, Table]  # ratings, films, people
Results = dict[str, dict[str, float]]  # metrics on the test set, by model

RETRIEVAL_SPACE: tune.Space = {
    "learning_rate": tune.Float(4e-3, 2e-2, log=True),
    "weight_decay": tune.Float(1e-3, 1e-1, log=True),
    "dropout": tune.Float(0.1, 0.5),
    "drop_history": tune.Float(0.0, 0.4),
}
RETRIEVAL_DEFAULTS = {
    "learning_rate": 8e-3,
    "weight_decay": 1e-2,
    "dropout": 0.35,
    "drop_history": 0.2,
}
RANKER_SPACE: tune.Space = {
    "max_depth": tune.Integer(2, 5),
    "learning_rate": tune.Float(0.02, 0.2, log=True),
    "min_child_weight": tune.Float(0.05, 5.0, log=True),
    "colsample_bytree": tune.Float(0.3, 1.0),
    "reg_lambda": tune.Float(1.0, 30.0, log=True),
}


class Training(BaseModel):
    """Settings of training."""

    strategy: train.StrategyName = "ddp"
    workers: int = Field(2, ge=1, description="training workers, and actors of the ranker")
    epochs: int = Field(5, ge=1, description="epochs of the two towers")
    seed: int = 0


class Config(Training):
    """Settings of the job."""

    ratings: str | None = Field(None, description="ratings file, CSV or Parquet; else MovieLens")
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE or ~/.raysys")
    retrieval_trials: int = Field(4, ge=1, description="trials of the towers' search")
    ranker_trials: int = Field(8, ge=1, description="trials of the ranker's search")
    shards: int | None = Field(None, ge=1, description="shards of the index; by its size if unset")
    compare: bool = Field(False, description="also evaluate popularity and tuned ALS")
    serve: bool = Field(True, description="deploy an HTTP endpoint")
    host: str = Field("127.0.0.1", description="interface of the endpoint; 0.0.0.0 is all")
    port: int = Field(8000, description="port of the endpoint, if Serve is not running yet")


def make_job(config: Config) -> workflow.Job:
    """The steps with their parameters and inputs."""
    job = workflow.Job("recommender", config, Storage(config.storage), measure_traffic=True)
    ratings = config.ratings and workflow.InputFiles(config.ratings)
    training = Training(**config.model_dump(include=set(Training.model_fields)))
    tables = job.step(etl, ratings, blocks=2 * config.workers)
    search = job.step(tune_retrieval, training, tables, trials=config.retrieval_trials)
    towers = job.step(train_retrieval, training, tables, search)
    candidates = job.step(make_candidates, tables, search)
    best = job.step(tune_ranker, candidates, trials=config.ranker_trials, seed=config.seed)
    ranker = job.step(train_ranker, candidates, best, actors=config.workers, seed=config.seed)
    model = job.step(store_model, tables, towers, ranker)
    index = job.step(build_index, tables, towers, shards=config.shards)
    job.on_failure(index, close_index)
    baselines = job.step(compare, tables) if config.compare else None
    results = job.step(evaluate, tables, model, index, baselines)
    job.step(publish, config, tables, model, index, results).options(cached=False)
    return job


def etl(run: Run, path: str | None, blocks: int) -> Tables:
    """Read, validate against the schema, split by time, and derive features with Modin."""
    result, ratings, films, people = film_etl.etl(path, blocks)
    run.log_quarantine(result)
    run.log_tables(ratings=ratings, films=films, people=people)
    return {"ratings": ratings, "films": films, "people": people}


def tune_retrieval(run: Run, training: Training, tables: Tables, trials: int) -> tune.SearchResult:
    """Tune the towers' hyperparameters by NDCG@10 on the validation set."""
    search = tune.search(
        "retrieval",
        tune.training(functools.partial(retrieval_task, training, film_etl.VALIDATION)),
        tables,
        RETRIEVAL_SPACE,
        run.work,
        metric="ndcg_at_10",
        n_trials=trials,
        sampler=tune.Sampler(seed=training.seed, enqueue=RETRIEVAL_DEFAULTS),
        scheduler=tune.TrialScheduler(training.epochs, grace_rounds=2),
    )
    run.log_search("retrieval", search.best_value, search.rows())
    return search


def retrieval_task(
    training: Training, part: int, settings: dict[str, Any]
) -> tuple[TwoTower, train.TrainSettings]:
    """The towers on the ratings before a cut, and their training settings."""
    task = TwoTower(part, dropout=settings["dropout"], drop_history=settings["drop_history"])
    return task, train.TrainSettings(
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        num_workers=training.workers,
        **training.model_dump(exclude={"workers"}),
    )


def train_retrieval(
    run: Run, training: Training, tables: Tables, search: tune.SearchResult
) -> train.FitResult:
    """Train the towers with the best trial's settings on all ratings before the test set."""
    task, settings = retrieval_task(training, film_etl.TEST, search.best_params)
    result = train.fit("retrieval", task, tables, settings, run.work)
    run.log_curve("retrieval", {"train loss": [epoch["train_loss"] for epoch in result.history]})
    return result


def make_candidates(run: Run, tables: Tables, search: tune.SearchResult) -> Table:
    """The best trial's candidates for each person's validation set, with features and labels.

    The towers of that trial have not seen the set, so their candidates resemble those of the final
    towers for films not chosen yet.
    """
    parameters = ray.put(train.load_state_dict(search.checkpoint()))
    return tables["people"].map_blocks(film_ranker.labelled_candidates, tables, parameters)


def tune_ranker(run: Run, candidates: Table, trials: int, seed: int) -> tune.SearchResult:
    """Tune the ranker's hyperparameters by NDCG@10 on a fifth of the people."""
    search = tune.search(
        "ranker",
        film_ranker.rank_held_out,
        {"candidates": candidates},
        RANKER_SPACE,
        run.work,
        metric="ndcg_at_10",
        n_trials=trials,
        sampler=tune.Sampler(seed=seed),
        scheduler=tune.TrialScheduler(
            film_ranker.ROUNDS // film_ranker.ROUNDS_PER_REPORT, grace_rounds=2
        ),
    )
    run.log_search("ranker", search.best_value, search.rows())
    return search


def train_ranker(
    run: Run, candidates: Table, best: tune.SearchResult, actors: int, seed: int
) -> bytes:
    """Train the ranker with XGBoost on actors that read the candidates' blocks."""
    settings = train.BoostSettings(
        num_boost_round=best.best_round * film_ranker.ROUNDS_PER_REPORT,
        num_actors=actors,
        seed=seed,
        **(film_ranker.SETTINGS | best.best_params),
    )
    boosted = train.boost(candidates, settings, label="label", group="userId")
    return bytes(boosted.booster.save_raw("ubj"))


def store_model(run: Run, tables: Tables, towers: train.FitResult, ranker: bytes) -> StoredModel:
    """Register towers, ranker and the tables that they need in the model store."""
    write = functools.partial(film_graph.write_model, tables, towers.state_dict(), ranker)
    return run.store_model("recommender", write, signature=film_graph.SIGNATURE)


def build_index(run: Run, tables: Tables, towers: train.FitResult, shards: int | None) -> str:
    """Build an index of the films' vectors; returns its name."""
    vectors = Table.load(film_retrieval.film_vectors, tables["films"], towers.state_dict())
    name = f"{run.id}/films"
    VectorIndex.build(name, vectors, run.storage, metric="ip", shards=shards, ef_search=400)
    return name


def close_index(name: str) -> None:
    """End the index's actors; its files stay, and `VectorIndex.open` restarts them."""
    VectorIndex.connect(name).close()


def evaluate(
    run: Run, tables: Tables, model: StoredModel, index: str, baselines: Results | None
) -> Results:
    """Evaluate the serving graph on all people with a test set."""
    films = VectorIndex.open(index, run.storage)
    metrics = tables["people"].map_blocks(
        film_graph.measure, tables, run.storage, model, films, name="evaluate"
    )
    means = metrics.means()
    results = {
        title: {name: means[f"{node}_{name}"] for name in ("ndcg_at_10", "recall_at_20")}
        for node, title in (("retrieved", "two towers alone"), ("ranked", "raysys"))
    }
    run.log_comparison("test set", results | (baselines or {}))
    return results


def compare(run: Run, tables: Tables) -> Results:
    """Metrics of popularity and tuned ALS on the same test set."""
    task = ray.remote(peers.compare_peers).options(num_cpus=2)
    return ray.get(task.remote(tables["ratings"], tables["films"]))


def publish(
    run: Run, config: Config, tables: Tables, model: StoredModel, index: str, results: Results
) -> None:
    """Promote the evaluated model to champion, and deploy it if configured."""
    ModelStore(run.storage).promote(model)
    if config.serve:
        deploy(run, config, tables, model, VectorIndex.open(index, run.storage))
    else:
        close_index(index)


def deploy(
    run: Run, config: Config, tables: Tables, model: StoredModel, index: VectorIndex
) -> None:
    """Deploy the graph, close the indexes of earlier runs, and request recommendations."""
    person, liked = example_person(tables)
    endpoint = serve.deploy(
        "recommender",
        film_graph.endpoint_graph(run.storage, model, index),
        route="/recommend",
        example={"user_id": [person], "k": [10]},
        gateway=serve.GatewayOptions(config.host, config.port),
    )
    index.close_others("recommender-")
    request = {"user_id": person, "k": 10}
    answer = endpoint.predict(request)
    print(f"\nuser {person} liked: {'; '.join(liked)}\nrecommended:")
    for film in answer["films"]:
        year = f" ({film['year']})" if film["year"] else ""
        print(f"  {film['title']}{year}", *film["genres"][:3], sep=", ")
    print(f"\nask again: {endpoint.curl(request)}\nOpenAPI:   {endpoint.docs_url}")


def example_person(tables: Tables) -> tuple[int, list[str]]:
    """Somebody with some forty ratings, few enough to judge the answer, and five favourites."""
    _, person, favourites = min(tables["ratings"].gather(_near_forty, name="example_person"))
    titles: dict[int, str] = {}
    for part in tables["films"].gather(_titles, favourites, name="example_titles"):
        titles |= part
    return person, [titles[film] for film in favourites]


def _near_forty(ratings: pa.Table) -> tuple[int, int, list[int]]:
    """Distance from forty ratings, the person, and five films that they rated highest."""
    rows = pl.DataFrame(ratings.select(["userId", "movieId", "rating"]))
    counts = rows.group_by("userId").agg(distance=(pl.len().cast(pl.Int64) - 40).abs())
    person, distance = counts.sort("distance", "userId").row(0)
    rated = rows.filter(pl.col("userId") == person)
    best = rated.sort("rating", "movieId", descending=[True, False])
    return distance, person, best["movieId"].head(5).to_list()


def _titles(films: pa.Table, chosen: list[int]) -> dict[int, str]:
    rows = films.select(["movieId", "title"]).to_pylist()
    return {row["movieId"]: row["title"] for row in rows if row["movieId"] in chosen}


if __name__ == "__main__":
    workflow.run_job(make_job, Config)
