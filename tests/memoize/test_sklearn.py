"""A chest as `memory=` of scikit-learn: its own tests of caching, and what only a chest can do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arraychest
from arraychest import Chest
from arraychest.errors import ArrayChestWarning
from tests.support import audit, run_python

pytest.importorskip("sklearn")

from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.cluster import OPTICS, AgglomerativeClustering, FeatureAgglomeration
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.validation import check_memory

# --- scikit-learn's own tests ----------------------------------------------------------------------

# Module and test.  What they give as `memory=`, a chest takes the place of.
THEIRS = [
    ("sklearn.tests.test_pipeline", "test_pipeline_memory"),
    ("sklearn.tests.test_pipeline", "test_make_pipeline_memory"),
    ("sklearn.tests.test_pipeline", "test_pipeline_memory_callbacks_second_fit_same_pipeline"),
    ("sklearn.cluster.tests.test_hierarchical", "test_agglomerative_clustering"),
]

# What their tests say of `memory=` that is no matter of what caches.
LEFT_OUT = {
    "test_check_memory": (
        "of a path check_memory makes a joblib.Memory, and of None one without a location; what it "
        "says of other objects is tested below"
    ),
}

# In a process of their own: their modules use marks, and leave files open, as theirs may.
RUN_THEIRS = """
import contextlib, importlib, inspect, json, os, sys, traceback
import arraychest

class Stand:
    "In the place of the module joblib in one of their test modules."
    def __init__(self, module, make):
        self.module, self.Memory = module, make
    def __getattr__(self, name):
        return getattr(self.module, name)

def make(location, verbose=0):
    chest = arraychest.Chest(path=os.path.join(location, "chest"), allow_pickle=True)
    made.append(chest)
    return chest

def with_chest(kind):
    def construct(*args, memory=None, **options):
        return kind(*args, memory=None if memory is None else make(memory), **options)
    return construct

outcomes = {}
for module, name in json.loads(sys.argv[1]):
    where = importlib.import_module(module)
    test = getattr(where, name, None)
    if test is None:
        outcomes[name] = "missing"
        continue
    made = []
    where = sys.modules[test.__module__]
    if hasattr(where, "joblib"):
        where.joblib = Stand(where.joblib, make)
    if hasattr(where, "AgglomerativeClustering"):
        where.AgglomerativeClustering = with_chest(where.AgglomerativeClustering)
    known = {"global_random_seed": lambda: 0, "lil_container": lambda: where.LIL_CONTAINERS[0]}
    try:
        test(**{each: known[each]() for each in inspect.signature(test).parameters})
        # What the chest has in it, though its folder is gone: something, where anything was fitted.
        assert made, "no chest took part"
        hits = sum(chest.stats().hits + chest.stats().faults for chest in made)
        assert name == "test_make_pipeline_memory" or hits, "nothing was asked of the chest"
        outcomes[name] = "passed"
    except BaseException:
        outcomes[name] = traceback.format_exc()
    for chest in made:
        with contextlib.suppress(OSError, arraychest.ArrayChestError):
            chest.close()

named = set()
for module in json.loads(sys.argv[2]):
    where = importlib.import_module(module)
    for name, test in vars(where).items():
        if name.startswith("test_") and inspect.isfunction(inspect.unwrap(test)):
            text = inspect.getsource(test)
            if any(each in text for each in ("Memory(", "memory=mem", "memory=temp", "check_memory(")):
                named.add(name)
print(json.dumps([outcomes, sorted(named)]))
"""

MODULES = [
    "sklearn.tests.test_pipeline",
    "sklearn.cluster.tests.test_hierarchical",
    "sklearn.cluster.tests.test_feature_agglomeration",
    "sklearn.cluster.tests.test_optics",
    "sklearn.cluster.tests.test_hdbscan",
    "sklearn.utils.tests.test_validation",
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """What came of each of their tests, and which of them name `memory=`."""
    given = (json.dumps(THEIRS), json.dumps(MODULES))
    done = run_python(RUN_THEIRS, *given, prefix="export PYTHONWARNINGS=ignore")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for _, name in THEIRS])
def test_their_own_test_passes(name, theirs):
    outcome = theirs[0][name]
    if outcome == "missing":
        pytest.skip(f"this scikit-learn has no {name}")
    assert outcome == "passed", outcome


@pytest.mark.slow
def test_theirs_are_all_here(theirs):
    """Every test of theirs that names `memory=` is either run or left out for a reason."""
    assert set(theirs[1]) <= {*(name for _, name in THEIRS), *LEFT_OUT}


# --- ours ------------------------------------------------------------------------------------------


class Counted(TransformerMixin, BaseEstimator):
    """Adds a number, and says how often it was fitted."""

    fits: list[float] = []

    def __init__(self, number: float = 1.0) -> None:
        self.number = number

    def fit(self, X: Any, y: Any = None) -> Counted:
        self.fits.append(self.number)
        self.mean_ = np.mean(X, axis=0)
        return self

    def transform(self, X: Any) -> Any:
        return X + self.number


@pytest.fixture
def iris() -> Any:
    return load_iris(return_X_y=True)


@pytest.fixture
def fits() -> list[float]:
    Counted.fits.clear()
    return Counted.fits


def test_check_memory_takes_a_chest(chest):
    assert len(chest) == 0
    assert check_memory(chest) is chest


def test_a_second_fit_is_a_hit(path, iris, fits):
    X, y = iris
    with Chest(path=path, allow_pickle=True) as chest:
        pipeline = make_pipeline(Counted(2.0), LogisticRegression(max_iter=500), memory=chest)
        first = pipeline.fit(X, y).predict(X)
        assert fits == [2.0]
        assert (pipeline.fit(X, y).predict(X) == first).all()
        assert fits == [2.0]
        pipeline.set_params(counted__number=3.0).fit(X, y)
        assert fits == [2.0, 3.0]
        assert len(chest) == 2
        assert X.flags.writeable
        assert chest.verify().ok
    with arraychest.open(path, "a", allow_pickle=True) as chest:
        pipeline.set_params(memory=chest).fit(X, y)
        assert fits == [2.0, 3.0]
    audit(path)


def test_copies_of_a_pipeline_share_the_chest(chest, iris):
    pipeline = make_pipeline(StandardScaler(), SVC(), memory=chest)
    assert clone(pipeline).memory is chest
    assert clone(clone(pipeline)).memory is chest
    assert copy.deepcopy(pipeline).memory is chest
    assert copy.copy(pipeline).memory is chest
    assert pipeline[:1].memory is chest
    assert "memory" in repr(pipeline)
    pipeline._repr_html_()


def test_a_chain_of_transformers_is_cached_step_by_step(make_chest, iris, fits):
    X, y = iris
    chest = make_chest(allow_pickle=True)
    steps = [("a", Counted(1.0)), ("b", Counted(2.0)), ("c", SVC())]
    Pipeline(steps, memory=chest).fit(X, y)
    assert fits == [1.0, 2.0]
    steps[1] = ("b", Counted(5.0))
    Pipeline(steps, memory=chest).fit(X, y)
    assert fits == [1.0, 2.0, 5.0]


def test_without_pickle_it_fits_and_a_warning_says_what_to_pass(chest, iris):
    pipeline = make_pipeline(StandardScaler(), SVC(), memory=chest)
    with pytest.warns(ArrayChestWarning, match=r"_fit_transform_one.*allow_pickle=True"):
        pipeline.fit(*iris)
    assert pipeline.score(*iris) > 0.9


def test_a_fitted_estimator_from_the_chest_works_on(make_chest, iris):
    X, y = iris
    chest = make_chest(allow_pickle=True)
    for _ in range(2):
        pipeline = make_pipeline(StandardScaler(), PCA(2), SVC(), memory=chest).fit(X, y)
        expected = make_pipeline(StandardScaler(), PCA(2), SVC()).fit(X, y)
        assert (pipeline.predict(X) == expected.predict(X)).all()
        np.testing.assert_array_equal(pipeline[:-1].transform(X), expected[:-1].transform(X))


def test_clusterings_keep_their_trees(make_chest, iris):
    X, _ = iris
    chest = make_chest()  # arrays only: nothing to pickle
    for estimator in (
        AgglomerativeClustering(3, linkage="average"),
        AgglomerativeClustering(3),
        FeatureAgglomeration(2),
        OPTICS(min_samples=10),
    ):
        expected = clone(estimator).fit(X).labels_
        estimator.set_params(memory=chest)
        before = len(chest)
        assert (clone(estimator).fit(X).labels_ == expected).all()
        assert len(chest) > before
        after = len(chest)
        assert (estimator.fit(X).labels_ == expected).all()
        assert len(chest) == after


@pytest.mark.slow
def test_a_search_on_two_processes_uses_one_chest(path, tmp_path):
    log = tmp_path / "log"
    run_python(
        """
        import os, sys
        import numpy as np
        import arraychest
        from sklearn.base import BaseEstimator, TransformerMixin
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline

        sys.path.insert(0, sys.argv[3])
        from logged import Logged

        X, y = load_iris(return_X_y=True)
        with arraychest.Chest(path=sys.argv[1], allow_pickle=True) as chest:
            pipeline = make_pipeline(Logged(sys.argv[2]), LogisticRegression(max_iter=500), memory=chest)
            grid = {"logisticregression__C": [0.1, 0.3, 1.0, 3.0]}
            search = GridSearchCV(pipeline, grid, n_jobs=2, cv=3, error_score="raise").fit(X, y)
            assert search.best_score_ > 0.9
            assert search.best_estimator_.memory is not None
            # Of each of three folds, and of all once more: whatever C is.
            assert len(chest) == 4, list(chest)
        """,
        path,
        str(log),
        str(_module_of_a_transformer(tmp_path)),
        prefix=f"export PYTHONPATH=$PYTHONPATH:{tmp_path} PYTHONWARNINGS=ignore",
    )
    assert len(log.read_text().splitlines()) == 4
    audit(path)


def _module_of_a_transformer(folder: Path) -> Path:
    (folder / "logged.py").write_text(
        """
from sklearn.base import BaseEstimator, TransformerMixin


class Logged(TransformerMixin, BaseEstimator):
    def __init__(self, log):
        self.log = log

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        with open(self.log, "a") as file:
            file.write("fitted\\n")
        return self

    def transform(self, X):
        return X * 2.0
"""
    )
    return folder


@pytest.mark.usefixtures("resource_tracker")  # joblib starts it, on Python 3.14
def test_a_search_on_threads_fits_once(make_chest, iris, fits):
    X, y = iris
    chest = make_chest(allow_pickle=True)
    pipeline = make_pipeline(Counted(4.0), LogisticRegression(max_iter=500), memory=chest)
    import joblib

    with joblib.parallel_backend("threading", n_jobs=3):
        GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0, 3.0]}, cv=2).fit(X, y)
    assert len(fits) == 3
