"""Folders on their way to a Hub and back, and what happens when something goes wrong."""

import json
import os

import pytest

from tests.hub_client import turned_to
from tests.hub_folders import auto_map, features_of, save_kind
from tests.hub_server import TOKEN, running_hub
from vistok import GVTForConditionalGeneration, GVTModel
from vistok.cli import main
from vistok.hub_cards.push import PushError, send
from vistok.hub_cards.push_plan import planned_push
from vistok.hub_cards.run_results import merge_results
from vistok.modeling.hub_weights import DownloadError

REPO = "org/gvt-tiny"
FAKE_SECRET = "hf_" + "q" * 34


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as server, turned_to(server, tmp_path / "cache", monkeypatch):
        yield server


def plan_of(folder, **options):
    with planned_push(folder, REPO, **options) as plan:
        return plan


def push(folder, **options):
    with planned_push(folder, REPO) as plan:
        return send(plan, **options)


def blobs_of(cache) -> list[str]:
    """All files of a cache of the Hub that hold something of a model."""
    files = [path for path in cache.rglob("*") if path.is_file() and ".locks" not in path.parts]
    return sorted(path.name for path in files if "blobs" in path.parts or "snapshots" in path.parts)


class TestRoundTrip:
    def test_what_was_pushed_is_loaded_by_its_name(self, folder, hub):
        pushed = push(folder)
        assert pushed.url.endswith(REPO)
        files = hub.files(REPO)
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert json.loads(files["config.json"])["auto_map"]["AutoModel"] == "vistok_classes.GVTModel"
        from transformers import AutoModel

        loaded = AutoModel.from_pretrained(REPO)
        assert type(loaded) is GVTModel
        assert features_of(loaded) == features_of(GVTModel.from_pretrained(folder))
        assert hub.tokens_at_storage == 0

    def test_pushing_again_sends_no_weights_again(self, folder, hub):
        push(folder)
        hub.uploads.clear()
        push(folder)
        assert hub.uploads == []

    def test_weights_and_code_of_a_former_push_go_and_other_files_stay(self, folder, hub):
        push(folder)
        repository = hub.repositories[REPO]
        files = repository.commits[repository.branches["main"]]
        files["old.safetensors"], files["notes.txt"] = files["model.safetensors"], files["config.json"]
        with planned_push(folder, REPO, self_contained=True) as plan:
            send(plan)
        names = set(hub.files(REPO))
        assert "modeling_gvt.py" in names and "notes.txt" in names
        assert not names & {"old.safetensors", "vistok_classes.py"}
        push(folder)
        assert not any(name.startswith("modeling_") for name in hub.files(REPO))

    def test_private_repositories_branches_and_messages(self, folder, hub):
        push(folder, private=True, revision="try", message="A try")
        assert hub.repositories[REPO].private
        assert "model.safetensors" in hub.files(REPO, "try")
        assert "model.safetensors" not in hub.files(REPO, "main")

    def test_what_everybody_reads_is_not_taken_for_private(self, folder, hub):
        push(folder)
        before = hub.repositories[REPO].branches["main"]
        with pytest.raises(PushError, match="exists and everybody can read it"):
            push(folder, private=True)
        assert hub.repositories[REPO].branches["main"] == before

    def test_the_command_shows_files_and_pushes_them_without_its_token(self, folder, hub, capsys):
        assert main(["push", str(folder), REPO, "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert "model.safetensors" in shown and "nothing was sent" in shown
        assert "stays here (state of the training): optimizer.pt, training_args.bin" in shown
        assert hub.requests == []
        assert main(["push", str(folder), REPO]) == 0
        told = capsys.readouterr()
        assert f"{hub.endpoint}/{REPO}" in told.out
        assert TOKEN not in told.out + told.err
        assert all(TOKEN.encode() not in content for content in hub.files(REPO).values())


class TestFailures:
    def test_an_upload_that_is_cut_commits_nothing_and_goes_on_when_it_is_run_again(self, folder, hub):
        hub.faults.cut_uploads, hub.faults.cut_uploads_after = 100, 1000
        with pytest.raises(PushError, match=r"was cut.*Nothing was committed") as error:
            push(folder)
        assert TOKEN not in str(error.value)
        assert hub.files(REPO) == {}
        hub.faults.cut_uploads = 0
        push(folder)
        assert "model.safetensors" in hub.files(REPO)

    def test_an_upload_that_is_damaged_on_its_way_is_refused(self, folder, hub):
        hub.faults.damage_uploads = 1
        with pytest.raises(PushError, match=r"not what was sent \(its hash or size differs\)"):
            push(folder)
        assert hub.files(REPO) == {}

    def test_a_wrong_token_is_told_and_not_repeated(self, folder, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", FAKE_SECRET)
        with pytest.raises(PushError, match="does not know who you are") as error:
            push(folder)
        assert FAKE_SECRET not in str(error.value)

    def test_a_token_that_is_none_is_told(self, folder, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "tokén-of-nobody")
        with pytest.raises(PushError, match="characters that are none of a token"):
            push(folder)

    def test_a_password_in_the_address_is_not_told(self, folder, hub, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://ada:pass1234@127.0.0.1:9")
        with pytest.raises(PushError, match=r"the Hub \(http://") as error:
            push(folder)
        assert "pass1234" not in str(error.value)

    def test_a_hub_that_is_not_there_is_named(self, folder, hub, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(PushError, match=r"http://127\.0\.0\.1:9\) cannot be reached"):
            push(folder)

    def test_a_download_that_breaks_off_once_is_taken_up_again(self, folder, hub):
        push(folder)
        hub.faults.truncate_downloads = 1
        loaded = GVTModel.from_pretrained(REPO)
        assert features_of(loaded) == features_of(GVTModel.from_pretrained(folder))

    def test_a_download_that_stays_short_leaves_nothing_in_the_cache(self, folder, hub, tmp_path):
        push(folder)
        hub.faults.truncate_downloads = 1000
        with pytest.raises(DownloadError, match=r"download of model\.safetensors of org/gvt-tiny broke off"):
            GVTModel.from_pretrained(REPO)
        size = (folder / "model.safetensors").stat().st_size
        assert not [name for name in blobs_of(tmp_path / "cache") if "safetensors" in name or "incomplete" in name]
        assert all(path.stat().st_size < size // 3 for path in (tmp_path / "cache").rglob("blobs/*"))
        hub.faults.truncate_downloads = 0
        GVTModel.from_pretrained(REPO)

    @pytest.mark.parametrize("kind", ["gvt", "eva_vision"])
    def test_a_download_with_another_hash_is_refused_and_taken_out_of_the_cache(self, kind, hub, tmp_path):
        model = save_kind(kind, tmp_path / kind)
        with planned_push(tmp_path / kind, REPO) as plan:
            send(plan)
        hub.faults.damage_downloads = 1
        with pytest.raises(DownloadError, match=r"was damaged on its way, and has been taken out of the cache"):
            type(model).from_pretrained(REPO)
        assert "model.safetensors" not in blobs_of(tmp_path / "cache")
        assert features_of(type(model).from_pretrained(REPO)) == features_of(model)

    def test_an_offline_hub_gives_a_clear_error_and_no_cache(self, hub, tmp_path, monkeypatch):
        hub.shutdown()
        hub.server_close()
        with pytest.raises(OSError, match=r"couldn't connect|couldn't find"):
            GVTForConditionalGeneration.from_pretrained("org/never-there")
        assert blobs_of(tmp_path / "cache") == []

    def test_what_is_in_the_cache_is_loaded_while_the_hub_is_offline(self, folder, hub, monkeypatch):
        push(folder)
        GVTModel.from_pretrained(REPO)
        asked = len(hub.requests)
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        GVTModel.from_pretrained(REPO)
        assert len(hub.requests) == asked


class TestBenchmarks:
    REPORT = {
        "task": "drawn-shapes",
        "num_questions": 1200,
        "accuracy": 91.25,
        "interval": [89.5, 92.75],
        "floors": {"majority": {"accuracy": 37.5}},
    }

    def test_results_are_files_that_the_hub_reads(self, folder):
        merge_results(folder, {"evaluation": [self.REPORT]})
        plan = plan_of(folder, benchmarks={"drawn-shapes": "org/drawn-shapes:count"})
        (file,) = [file for file in plan.files if file.path.startswith(".eval_results/")]
        import yaml
        from huggingface_hub import parse_eval_result_entries

        (entry,) = parse_eval_result_entries(yaml.safe_load(file.content))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("org/drawn-shapes", "count", 91.25)
        assert "95 % interval 89.5 to 92.75" in entry.notes and "majority answer 37.5" in entry.notes

    @pytest.mark.parametrize(
        ("benchmarks", "message"),
        [
            ({"other": "org/x"}, "no evaluation of 'other'"),
            ({"drawn-shapes": "shapes"}, "expected the id of a data set"),
        ],
    )
    def test_wrong_benchmarks_are_refused(self, folder, benchmarks, message):
        merge_results(folder, {"evaluation": [self.REPORT]})
        with pytest.raises(ValueError, match=message):
            plan_of(folder, benchmarks=benchmarks)


def test_what_the_stub_loads_can_be_saved_again(folder, tmp_path, monkeypatch):
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    with planned_push(folder, REPO) as plan:
        for file in plan.files:
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            (tmp_path / "stub" / file.path).parent.mkdir(exist_ok=True)
            (tmp_path / "stub" / file.path).write_bytes(content)
    stub = str(tmp_path / "stub")
    for name, reference in auto_map(tmp_path / "stub").items():
        kind = get_class_from_dynamic_module(reference, stub)
        assert kind.__module__.startswith("vistok.")
        kind.register_for_auto_class(name)  # as transformers does with what it has loaded
    model = GVTModel.from_pretrained(stub, config=AutoConfig.from_pretrained(stub))
    model.save_pretrained(tmp_path / "again")
    assert os.path.isfile(tmp_path / "again" / "model.safetensors")
