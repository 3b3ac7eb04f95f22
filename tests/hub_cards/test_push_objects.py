"""`push_to_hub` of models and processors, and what is pushed while it is saved."""

import json

import pytest
from safetensors.torch import load

import vistok
from tests.hub_client import turned_to
from tests.hub_server import TOKEN, running_hub
from tests.tiny import tiny_gvt, tiny_processor

REPO = "org/gvt-tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as server, turned_to(server, tmp_path / "cache", monkeypatch):
        yield server


def test_a_model_and_its_processor_are_pushed_one_after_the_other(hub, tmp_path):
    model, processor = tiny_gvt(), tiny_processor()
    model.push_to_hub(REPO)
    processor.push_to_hub(REPO)
    files = hub.files(REPO)
    assert {"model.safetensors", "README.md", "processor_config.json", "tokenizer.json"} <= set(files)
    assert json.loads(files["processor_config.json"])["auto_map"] == {"AutoProcessor": "vistok_classes.GVTProcessor"}
    assert b"GVTModel" in files["vistok_classes.py"]
    assert f'model="{REPO}"' in files["README.md"].decode()


@pytest.mark.parametrize(
    ("make", "config", "auto_class"),
    [
        (lambda: tiny_gvt().config, "config.json", "AutoConfig"),
        (tiny_processor, "processor_config.json", "AutoProcessor"),
        (tiny_gvt, "config.json", "AutoModelForImageTextToText"),
    ],
)
def test_what_is_pushed_while_it_is_saved_has_the_stub(make, config, auto_class, hub, tmp_path):
    saved = make()
    saved.save_pretrained(str(tmp_path / "local"))
    assert not (tmp_path / "local" / "vistok_classes.py").exists()
    saved.save_pretrained(str(tmp_path / "pushed"), push_to_hub=True, repo_id=REPO)
    files = hub.files(REPO)
    name = json.loads(files[config])["auto_map"][auto_class].removeprefix("vistok_classes.")
    assert name in files["vistok_classes.py"].decode() and hasattr(vistok, name)
    assert ("README.md" in files) == (auto_class == "AutoModelForImageTextToText")


@pytest.mark.parametrize("make", [tiny_gvt, tiny_processor])
def test_what_is_pushed_while_it_is_saved_goes_the_same_way(make, hub, tmp_path):
    published = make()
    published.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id=REPO, private=True)
    saved = {path.name for path in (tmp_path / "tiny").iterdir()}
    repository, pushed = hub.repositories[REPO], hub.files(REPO)
    assert repository.private and len(repository.commits) == 2 and saved <= set(pushed)
    published.push_to_hub("org/other")
    others = hub.files("org/other")
    assert others.keys() == pushed.keys()
    assert [name for name in others if others[name] != pushed[name]] in ([], ["README.md"])


def test_weights_that_are_given_are_the_ones_that_are_pushed(hub, tmp_path):
    """Where processes share a model, only those that were gathered are whole."""
    model = tiny_gvt()
    given = {name: weight + 1 for name, weight in model.state_dict().items()}
    options = {"state_dict": given, "max_shard_size": "100KB"}
    model.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id=REPO, **options)
    pushed, shards = hub.files(REPO), sorted((tmp_path / "tiny").glob("*.safetensors"))
    assert len(shards) > 1 and all(pushed[shard.name] == shard.read_bytes() for shard in shards)
    found = {name: weight for shard in shards for name, weight in load(pushed[shard.name]).items()}
    own_name = [name for name in found if ".resampler." in name]  # others are saved by the names of published towers
    assert own_name and all(found[name].equal(given[name]) for name in own_name)
    with pytest.raises(ValueError, match="adapter_only does not go with state_dict"):
        model.save_pretrained(tmp_path / "x", push_to_hub=True, repo_id=REPO, state_dict=given, adapter_only=True)


def test_only_the_main_process_pushes(hub, tmp_path):
    tiny_gvt().save_pretrained(tmp_path / "tiny", is_main_process=False, push_to_hub=True, repo_id=REPO)
    assert REPO not in hub.repositories


def test_a_credential_is_refused_while_it_is_saved_too(hub, tmp_path):
    model = tiny_gvt()
    model.config.note = TOKEN
    with pytest.raises(ValueError, match=r"config\.json"):
        model.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id=REPO)
    assert REPO not in hub.repositories


def test_a_card_that_is_there_stays(hub):
    model = tiny_gvt()
    model.push_to_hub(REPO)
    repository = hub.repositories[REPO]
    card = repository.commits[repository.branches["main"]]["README.md"]
    card.content = b"---\nlicense: mit\n---\n# Mine\n"
    model.push_to_hub(REPO, commit_message="again")
    assert hub.files(REPO)["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_our_card_follows_what_is_pushed_in_another_form(hub):
    model = tiny_gvt()
    told = {False: "vistok has to be installed", True: "vistok need not be installed"}
    for self_contained in (False, True, False):
        model.push_to_hub(REPO, self_contained=self_contained)
        card = hub.files(REPO)["README.md"].decode()
        assert told[self_contained] in card and told[not self_contained] not in card


def test_an_option_that_there_is_not_is_named():
    with pytest.raises(TypeError, match="takes no use_temp_dir"):
        tiny_gvt().push_to_hub(REPO, use_temp_dir=True)
