"""Film recommendations: raw ratings in, an HTTP endpoint out.

Run it with `python -m jobs.recommender`, here or under `ray job submit`; `--help` lists the
settings. The functions below are its stages, in their order.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import ray
from pydantic import BaseModel, Field

from jobs import film_etl, film_graph, film_ranker, film_retrieval, peers
from jobs.two_tower import TwoTower
from raysys import serve, train, tune, workflow
from raysys.data import Table
from raysys.index import VectorIndex
from raysys.storage import Storage

if TYPE_CHECKING:
    from raysys.models import StoredModel
    from raysys.workflow import Run

Tables = dict[str, Table]  # ratings, films, people
Results = dict[str, dict[str, float]]  # measures on the test set, by contestant

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


class Config(BaseModel):
    """Settings of the job."""

    ratings: str | None = Field(None, description="ratings file, CSV or Parquet; else MovieLens")
    storage: str | None = Field(None, description="storage root; else RAYSYS_STORAGE or ~/.raysys")
    strategy: train.StrategyName = "ddp"
    workers: int = Field(2, ge=1, description="training workers, and actors of the ranker")
    epochs: int = Field(5, ge=1, description="of the two towers")
    retrieval_trials: int = Field(4, ge=1, description="budget of the towers' search")
    ranker_trials: int = Field(8, ge=1, description="budget of the ranker's search")
    shards: int | None = Field(None, ge=1, description="of the index; chosen by its size")
    compare: bool = Field(False, description="train the peers too: popularity and tuned ALS")
    serve: bool = Field(True, description="leave an HTTP endpoint")
    host: str = Field("127.0.0.1", description="interface of the endpoint; 0.0.0.0 is all")
    port: int = Field(8000, description="of the endpoint, if Serve is not yet running")
    seed: int = 0


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
        run.on_failure.callback(index.close)
        with run.stage("evaluate"):
            results = evaluate(run, tables, model, index)
        if config.compare:
            with run.stage("compare"):
                results |= compare(tables)
        run.log_comparison("test set", results)
        if config.serve:
            with run.stage("deploy"):
                deploy(run, config, model, index)
        else:
            index.close()


def etl(run: Run, config: Config) -> Tables:
    """Read, check against the schema, split by time, derive features: in Modin on Ray."""
    checked, ratings, films, people = film_etl.etl(config.ratings, blocks=2 * config.workers)
    run.log_quarantine(checked)
    run.log_tables(ratings=ratings, films=films, people=people)
    return {"ratings": ratings, "films": films, "people": people}


def tune_retrieval(run: Run, config: Config, tables: Tables) -> tune.Found:
    """Search the towers' settings by NDCG@10 on the validation set."""
    found = tune.search(
        "retrieval",
        tune.training(functools.partial(retrieval_task, config, film_etl.VALIDATION)),
        tables,
        RETRIEVAL_SPACE,
        run.folder,
        metric="ndcg_at_10",
        defaults=RETRIEVAL_DEFAULTS,
        trials=config.retrieval_trials,
        rounds=config.epochs,
        grace_rounds=2,
        seed=config.seed,
    )
    run.log_search("retrieval", found.score, found.rows())
    return found


def retrieval_task(
    config: Config, part: int, settings: dict[str, Any]
) -> tuple[TwoTower, train.TrainSettings]:
    """The towers over what is known at a cut, and how they are trained."""
    task = TwoTower(part, dropout=settings["dropout"], drop_history=settings["drop_history"])
    return task, train.TrainSettings(
        strategy=config.strategy,
        workers=config.workers,
        epochs=config.epochs,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        seed=config.seed,
    )


def train_retrieval(run: Run, config: Config, tables: Tables, found: tune.Found) -> train.Fitted:
    """Train the towers with the best trial's settings on all that precedes the test set."""
    task, how = retrieval_task(config, film_etl.TEST, found.settings)
    fitted = train.fit("retrieval", task, tables, how, run.folder)
    run.log_curve("retrieval", {"train loss": [epoch["train_loss"] for epoch in fitted.history]})
    return fitted


def make_candidates(tables: Tables, found: tune.Found) -> Table:
    """The best trial's candidates for each person's validation set, with features and labels.

    That trial's towers know nothing of the set, so to the ranker its candidates are much like
    those of the final towers for films that are yet to be chosen.
    """
    parameters = ray.put(train.load_parameters(found.checkpoint))
    return tables["people"].map_blocks(film_ranker.labelled_candidates, tables, parameters)


def tune_ranker(run: Run, config: Config, candidates: Table) -> tune.Found:
    """Search the ranker's settings by NDCG@10 on a fifth of the people."""
    found = tune.search(
        "ranker",
        film_ranker.rank_held_out,
        {"candidates": candidates},
        RANKER_SPACE,
        run.folder,
        metric="ndcg_at_10",
        trials=config.ranker_trials,
        rounds=film_ranker.ROUNDS // film_ranker.ROUNDS_A_REPORT,
        grace_rounds=2,
        seed=config.seed,
    )
    run.log_search("ranker", found.score, found.rows())
    return found


def train_ranker(config: Config, candidates: Table, best: tune.Found) -> bytes:
    """Boost the ranker on actors that map the candidates' blocks."""
    settings = train.BoostSettings(
        rounds=best.rounds * film_ranker.ROUNDS_A_REPORT,
        actors=config.workers,
        seed=config.seed,
        **(film_ranker.SETTINGS | best.settings),
    )
    boosted = train.boost(candidates, settings, label="label", group="userId")
    return bytes(boosted.booster.save_raw("ubj"))


def store_model(run: Run, tables: Tables, towers: train.Fitted, ranker: bytes) -> StoredModel:
    """Put towers, ranker and the tables that they ask into the model store."""
    write = functools.partial(film_graph.write_model, tables, towers.parameters(), ranker)
    return run.store_model("recommender", write, signature=film_graph.SIGNATURE)


def build_index(run: Run, config: Config, tables: Tables, towers: train.Fitted) -> VectorIndex:
    """Index the films' vectors on actors."""
    vectors = Table.load(film_retrieval.film_vectors, tables["films"], towers.parameters())
    name, place = f"{run.id}/films", run.folder
    return VectorIndex.build(
        name, vectors, place, "index", metric="ip", shards=config.shards, ef=400
    )


def evaluate(run: Run, tables: Tables, model: StoredModel, index: VectorIndex) -> Results:
    """Run the serving graph over everybody who has a test set."""
    measured = tables["people"].map_blocks(
        film_graph.measure, tables, run.storage, model, index, name="evaluate"
    )
    means = measured.means()
    return {
        title: {name: means[f"{node}_{name}"] for name in ("ndcg_at_10", "recall_at_20")}
        for node, title in (("retrieved", "two towers alone"), ("ranked", "raysys"))
    }


def compare(tables: Tables) -> Results:
    """The peers on the same test set by the same rules."""
    task = ray.remote(peers.compare_peers).options(num_cpus=2)
    return ray.get(task.remote(tables["ratings"], tables["films"]))


def deploy(run: Run, config: Config, model: StoredModel, index: VectorIndex) -> None:
    """Put the graph behind HTTP, retire the last run's index, and ask for a real answer."""
    endpoint = serve.deploy(
        "recommender",
        film_graph.endpoint_graph(run.storage, model, index),
        route="/recommend",
        example={"user_id": [15], "k": [10]},
        host=config.host,
        port=config.port,
    )
    run.on_failure.pop_all()  # the index is the endpoint's now
    index.retire_others("recommender-")
    request = {"user_id": 15, "k": 10}
    answer = endpoint.ask(request)
    whose = f"films for user {request['user_id']}" if answer["known_user"] else "popular films"
    workflow.say(f"\n{whose}:")
    for film in answer["films"]:
        workflow.say(f"  {film['title']} ({film['year']}), {', '.join(film['genres'])}")
    workflow.say(f"\nask again: {endpoint.curl(request)}\nOpenAPI:   {endpoint.docs_url}")


if __name__ == "__main__":
    # Through the module's own name, so that workers import what is pickled here.
    from jobs import recommender

    workflow.run_job(recommender.main, recommender.Config)
