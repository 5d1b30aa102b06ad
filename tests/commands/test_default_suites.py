"""Which prompts are asked where none are named: those of the model's own world."""

import json
import shutil

import pytest
from helpers import tune

from moorline import embedded
from moorline.commands.default_suites import default_suites, is_embedded


def names(model):
    return {each.name for each in default_suites(str(model))}


def test_an_embedded_model_is_known_by_any_of_its_paths(tmp_path, monkeypatch):
    """Given through a link it was asked other prompts by `audit` than by `tune`'s own check."""
    link = tmp_path / "link"
    link.symlink_to(embedded.aligned_path(), target_is_directory=True)
    monkeypatch.chdir(embedded.files_path())
    for path in (embedded.aligned_path(), embedded.base_path(), link, "aligned", "./base/"):
        assert names(path) == {each.name for each in embedded.suites()}
    assert not is_embedded("someone/model")


@pytest.mark.lengthy
@pytest.mark.parametrize("whole", [True, False])
def test_a_tuned_folder_is_known_by_the_model_that_it_is_held_to(whole, flags, tmp_path):
    """A merged or fully tuned embedded model got the general prompts."""
    assert tune(flags).exit_code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not is_embedded(str(tmp_path / "run"))
    merged = tmp_path / "merged"
    merged.mkdir()
    base = embedded.aligned_path() if whole else run["base"]["name"]
    run["base"]["name"] = base
    (merged / "run.json").write_text(json.dumps(run))
    shutil.copy(f"{embedded.aligned_path()}/config.json", merged)
    assert is_embedded(str(merged)) == whole
