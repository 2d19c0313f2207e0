"""Film recommendations: raw ratings in, an HTTP endpoint out.

Run it with `python -m jobs.recommender`, here or under `ray job submit`; `--help` lists the
settings. The functions below are its stages, in their order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from jobs import film_etl
from raysys import workflow
from raysys.storage import Storage

if TYPE_CHECKING:
    from jobs.two_tower import TwoTower
    from raysys.data import Table
    from raysys.index import VectorIndex
    from raysys.models import StoredModel
    from raysys.train import Fitted, TrainSettings
    from raysys.tune import Found
    from raysys.workflow import Run

# The packages that compute are imported where they are used, which is mostly in workers: the
# driver starts in a second.


class Config(BaseModel):
    """Settings of the job."""

    ratings: str | None = Field(None, description="ratings file, CSV or Parquet; else MovieLens")
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE or ~/.raysys")
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    workers: int = Field(2, ge=1, description="training workers, and actors of the ranker")
    epochs: int = Field(5, ge=1, description="of the two towers")
    retrieval_trials: int = Field(4, ge=1, description="budget of the towers' search")
    ranker_trials: int = Field(8, ge=1, description="budget of the ranker's search")
    shards: int = Field(2, ge=1, description="of the index")
    compare: bool = Field(False, description="train the peers too: popularity and tuned ALS")
    serve: bool = Field(True, description="leave an HTTP endpoint")
    port: int = Field(8000, description="of the endpoint, if Serve is not yet running")
    seed: int = 0


@dataclass(frozen=True)
class Tables:
    """What the later stages are fed: references to checked, split and summed ratings."""

    ratings: Table
    films: Table
    people: Table

    def named(self) -> dict[str, Table]:
        """The same by name."""
        return dict(vars(self))


def main(config: Config) -> None:
    """Run all stages."""
    with workflow.Run("recommender", config, Storage(config.storage)) as run:
        with run.stage("etl"):
            tables = etl(run, config)
        with run.stage("tune retrieval"):
            found = tune_retrieval(run, config, tables)
        with run.stage("train retrieval"):
            towers = train_retrieval(run, config, tables, found)
        with run.stage("candidates"):
            candidates = make_candidates(tables, found)
        with run.stage("tune ranker"):
            best = tune_ranker(run, config, candidates)
        with run.stage("train ranker"):
            ranker = train_ranker(config, candidates, best)
        with run.stage("store model"):
            model = store_model(run, tables, towers, ranker)
        with run.stage("index"):
            index = build_index(run, config, tables, towers)
        with run.stage("evaluate"):
            results = evaluate(run, tables, model, index)
        if config.compare:
            with run.stage("compare"):
                results |= compare(tables)
        run.log_comparison("test set", results)
        if config.serve:
            with run.stage("deploy"):
                deploy(run, config, model, index)


def etl(run: Run, config: Config) -> Tables:
    """Read, check against the schema, split by time, derive features: in Modin on Ray."""
    checked, ratings, films, people = film_etl.etl(config.ratings, blocks=2 * config.workers)
    run.log_quarantine(checked)
    run.log_facts(data_fingerprint=ratings.fingerprint, ratings=ratings.rows, films=films.rows)
    return Tables(ratings, films, people)


def tune_retrieval(run: Run, config: Config, tables: Tables) -> Found:
    """Search the towers' settings by NDCG@10 on the validation set."""
    from raysys import train, tune

    def objective(settings: dict[str, Any], arrow: Mapping[str, Any], report: tune.Report) -> None:
        def on_epoch(measured: train.Epoch, parameters: train.Parameters) -> None:
            report(measured, save=functools.partial(train.save_parameters, parameters))

        task, training = towers(config, settings, film_etl.VALIDATION)
        train.train_in_process(task, arrow, training, on_epoch)

    found = tune.search(
        f"{run.id}/retrieval",
        objective,
        tables.named(),
        {
            "learning_rate": tune.Float(4e-3, 2e-2, log=True),
            "weight_decay": tune.Float(1e-3, 1e-1, log=True),
            "dropout": tune.Float(0.1, 0.5),
            "drop_history": tune.Float(0.0, 0.4),
        },
        run.storage,
        defaults={
            "learning_rate": 8e-3,
            "weight_decay": 1e-2,
            "dropout": 0.35,
            "drop_history": 0.2,
        },
        metric="ndcg_at_10",
        trials=config.retrieval_trials,
        rounds=config.epochs,
        grace_rounds=2,
        seed=config.seed,
    )
    run.log_search("retrieval", found.score, found.trials)
    return found


def towers(
    config: Config, settings: Mapping[str, Any], part: int
) -> tuple[TwoTower, TrainSettings]:
    """The training task over what is known at a cut, and how it is trained."""
    from jobs.two_tower import TwoTower
    from raysys import train

    task = TwoTower(part, dropout=settings["dropout"], drop_history=settings["drop_history"])
    return task, train.TrainSettings(
        strategy=config.strategy,
        workers=config.workers,
        epochs=config.epochs,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        seed=config.seed,
    )


def train_retrieval(run: Run, config: Config, tables: Tables, found: Found) -> Fitted:
    """Train the towers with the best trial's settings on all that precedes the test set."""
    from raysys import train

    task, training = towers(config, found.settings, film_etl.TEST)
    fitted = train.fit(f"{run.id}-retrieval", task, tables.named(), training, run.storage)
    run.log_curve("retrieval", {"train loss": [epoch["train_loss"] for epoch in fitted.history]})
    return fitted


def make_candidates(tables: Tables, found: Found) -> Table:
    """The best trial's candidates for each person's validation set, with features and labels.

    That trial's towers know nothing of the set, so its candidates are to the ranker what those
    of the final towers will be for films that are yet to be chosen.
    """
    import ray

    from jobs import film_ranker
    from raysys import train

    parameters = ray.put(train.load_parameters(found.checkpoint))
    return tables.people.map_blocks(
        film_ranker.labelled_candidates, *tables.named().values(), parameters, name="candidates"
    )


def tune_ranker(run: Run, config: Config, candidates: Table) -> Found:
    """Search the ranker's settings by NDCG@10 on a fifth of the people."""
    from jobs import film_ranker
    from raysys import tune

    found = tune.search(
        f"{run.id}/ranker",
        film_ranker.rank_held_out,
        {"candidates": candidates},
        {
            "max_depth": tune.Integer(2, 5),
            "learning_rate": tune.Float(0.02, 0.2, log=True),
            "min_child_weight": tune.Float(0.05, 5.0, log=True),
            "colsample_bytree": tune.Float(0.3, 1.0),
            "reg_lambda": tune.Float(1.0, 30.0, log=True),
        },
        run.storage,
        metric="ndcg_at_10",
        trials=config.ranker_trials,
        rounds=film_ranker.ROUNDS // film_ranker.ROUNDS_A_REPORT,
        grace_rounds=2,
        seed=config.seed,
    )
    run.log_search("ranker", found.score, found.trials)
    return found


def train_ranker(config: Config, candidates: Table, best: Found) -> bytes:
    """Boost the ranker on actors that read the partitions of the candidates' Modin frame."""
    from jobs import film_ranker
    from raysys import train

    settings = train.BoostSettings(
        rounds=film_ranker.ROUNDS, actors=config.workers, seed=config.seed, **best.settings
    )
    booster = train.boost(candidates.modin(), settings, label="label", group="userId")
    return bytes(booster.save_raw("ubj"))


def store_model(run: Run, tables: Tables, fitted: Fitted, ranker: bytes) -> StoredModel:
    """Put towers, ranker and what they need of the tables into the model store."""
    from jobs import film_graph

    return run.store_model(
        "recommender",
        functools.partial(film_graph.write_model, tables.named(), fitted.parameters(), ranker),
        signature={
            "request": film_graph.RecommendRequest.model_json_schema(),
            "response": film_graph.RecommendResponse.model_json_schema(),
        },
    )


def build_index(run: Run, config: Config, tables: Tables, fitted: Fitted) -> VectorIndex:
    """Index the films' vectors on shard actors."""
    from jobs import film_retrieval
    from raysys.data import Table
    from raysys.index import VectorIndex

    vectors = Table.load(
        film_retrieval.film_vectors, tables.films, fitted.parameters(), name="film vectors"
    )
    return VectorIndex.build(
        f"{run.id}/films", vectors, run.storage, run.path("index"), shards=config.shards
    )


def evaluate(
    run: Run, tables: Tables, model: StoredModel, index: VectorIndex
) -> dict[str, dict[str, float]]:
    """Run the serving graph over everybody who has a test set."""
    from jobs import film_graph

    ratings, films, people = tables.named().values()
    measured = people.map_blocks(
        film_graph.measure, ratings, films, run.storage, model.path, index, name="evaluate"
    ).means()
    return {
        title: {name: measured[f"{stage}_{name}"] for name in ("ndcg_at_10", "recall_at_20")}
        for stage, title in (("retrieval", "two towers alone"), ("ranked", "raysys"))
    }


def compare(tables: Tables) -> dict[str, dict[str, float]]:
    """The peers on the same test set by the same rules."""
    import ray

    from jobs import peers

    task = ray.remote(peers.compare_peers).options(name="compare", num_cpus=2)
    return ray.get(task.remote(tables.ratings, tables.films))


def deploy(run: Run, config: Config, model: StoredModel, index: VectorIndex) -> None:
    """Put the graph behind HTTP, retire the last run's index, and ask for a real answer."""
    from jobs import film_graph
    from raysys import serve

    endpoint = serve.deploy(
        "recommender",
        functools.partial(
            film_graph.build_endpoint, run.storage, model.path, index.name, config.shards
        ),
        route="/recommend",
        request=film_graph.RecommendRequest,
        response=film_graph.RecommendResponse,
        port=config.port,
    )
    index.retire_others("recommender-")
    request = {"user_id": 15, "k": 10}
    answer = endpoint.ask(request)
    workflow.say(f"\nfilms for user {request['user_id']}:")
    for film in answer["films"]:
        workflow.say(f"  {film['title']} ({film['year']}), {', '.join(film['genres'])}")
    workflow.say(f"\nask again: {endpoint.curl(request)}\nOpenAPI:   {endpoint.docs_url}")


if __name__ == "__main__":
    # Through the module's own name, so that workers import what is pickled here.
    from jobs import recommender

    recommender.main(workflow.parse(recommender.Config))
