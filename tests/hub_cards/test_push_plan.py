"""What of a folder goes to a Hub, and what is refused before anything is sent."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import save_base_models
from vistok import GVTForConditionalGeneration, save_trained_weights
from vistok.hub_cards.card import write_card
from vistok.hub_cards.push import send
from vistok.hub_cards.push_plan import PushPlan, planned_push
from vistok.hub_cards.run_results import merge_results
from vistok.modeling.trained_weights import CheckpointError

REPO = "org/gvt-tiny"
FAKE_SECRET = "hf_" + "q" * 34


def plan_of(folder, **options):
    with planned_push(folder, REPO, **options) as plan:
        return plan


class TestPlan:
    def test_weights_configs_card_and_code_go_and_the_rest_stays_with_a_reason(self, folder):
        plan = plan_of(folder)
        assert [file.path for file in plan.files] == [
            *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
            *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "vistok_classes.py"),
        ]
        assert set(plan.left_out) == {
            *("checkpoint-3/optimizer.pt", "runs/events.1", "training_args.bin", ".cache/x", "optimizer.pt")
        }
        assert plan.size == sum(file.size for file in plan.files)

    def test_the_folder_stays_as_it_is(self, folder):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        plan_of(folder, self_contained=True)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_the_stub_is_two_lines(self, folder):
        stub = next(file for file in plan_of(folder).files if file.path == "vistok_classes.py")
        lines = stub.content.decode().splitlines()
        assert len(lines) == 2
        assert lines[1] == "from vistok import GVTConfig, GVTForConditionalGeneration, GVTModel, GVTProcessor"

    def test_a_stub_in_the_folder_does_not_go_beside_the_code_itself(self, folder):
        (folder / "vistok_classes.py").write_text("from vistok import GVTModel\n")
        plan = plan_of(folder, self_contained=True)
        names = {file.path for file in plan.files}
        assert "modeling_gvt.py" in names and "vistok_classes.py" not in names
        assert plan.left_out["vistok_classes.py"] == "the code itself goes in its place"

    def test_pickled_weights_are_refused(self, folder):
        (folder / "model.safetensors").unlink()
        torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"no weights as safetensors.*not published"):
            plan_of(folder)

    def test_truncated_weights_are_refused(self, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"model\.safetensors .* is truncated or damaged"):
            plan_of(folder)

    def test_a_missing_shard_is_named_by_numbers(self, folder):
        (folder / "model.safetensors").unlink()
        save_file({"x": torch.zeros(1)}, folder / "model-00001-of-00003.safetensors")
        with pytest.raises(CheckpointError, match="1 of the 3 files"):
            plan_of(folder)

    def test_a_credential_is_refused_by_file_and_line_and_not_repeated(self, folder):
        (folder / "notes.txt").write_text(f"one\nexport HF_TOKEN={FAKE_SECRET}\n")
        with pytest.raises(ValueError, match=r"notes\.txt, line 2") as error:
            plan_of(folder)
        assert FAKE_SECRET not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("results.json", '{"recipe": {"training": {"hub_token": "abcdEFGH12345678"}}}'),
            ("notes.json", '{"password": "hunter2hunter2", "wandb_api_key": null}'),
            ("notes.yaml", 'api_key: "of-no-known-form"'),
            ("notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----"),
            ("LICENSE", "xoxb-1234567890-abcdef"),
            ("notes.md", "token: 0123456789abcdef0123456789abcdef"),
        ],
    )
    def test_credentials_are_found_in_texts_of_every_kind(self, folder, name, text):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=f"credential .*{name}, line 1"):
            plan_of(folder)

    def test_the_token_in_use_is_found_whatever_it_looks_like(self, folder, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "of no known form")
        (folder / "notes.txt").write_text("It is: of no known form.")
        with pytest.raises(ValueError, match=r"notes\.txt, line 1"):
            plan_of(folder)
        with pytest.raises(ValueError, match="the message of the commit, line 1"):
            send(PushPlan(REPO, []), message="By another one.", token="another one")

    def test_only_what_a_model_is_made_of_goes(self, folder, tmp_path):
        outside = tmp_path / "outside.txt"
        outside.write_text("not of the folder")
        (folder / "link.txt").symlink_to(outside)
        (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
        (folder / "LICENSE").write_text("Apache 2.0")
        stay = (
            "credentials",
            "id_rsa",
            "x.PT",
            "x.npy",
            "x.pkl.gz",
            "train.log",
            "wandb/meta.yaml",
            "events.out.tfevents.1",
        )
        for name in stay:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("of mine")
        plan = plan_of(folder)
        assert {*stay, "link.txt", "gone.txt"} <= set(plan.left_out)
        assert plan.left_out["x.PT"].startswith("may run code") and plan.left_out["train.log"] == "a log"
        assert plan.left_out["link.txt"] == "a link to a file that is not in the folder"
        names = {file.path for file in plan.files}
        assert "LICENSE" in names and not names & set(plan.left_out)

    def test_weights_that_lie_elsewhere_go(self, folder, tmp_path):
        (folder / "model.safetensors").rename(tmp_path / "store.safetensors")
        (folder / "model.safetensors").symlink_to(tmp_path / "store.safetensors")
        assert "model.safetensors" in {file.path for file in plan_of(folder).files}

    def test_an_index_whose_shards_are_missing_is_refused(self, folder):
        index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"names model-00001-of-00002\.safetensors, which is not in"):
            plan_of(folder)

    def test_a_card_without_a_licence_is_noted(self, folder):
        assert any("no licence" in note for note in plan_of(folder).notes)
        merge_results(folder, {"card": {"license": "mit"}})
        assert not plan_of(folder).notes

    def test_configs_name_no_folder_of_this_machine(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["_name_or_path"] = "/srv/ada/models/tiny-llama"
        (folder / "config.json").write_text(json.dumps(config))
        sent = next(file for file in plan_of(folder).files if file.path == "config.json")
        assert json.loads(sent.content)["text_config"]["_name_or_path"] == "tiny-llama"

    @pytest.mark.parametrize("name", ["gvt", "a/b/c", "org/../x", "org/na me", ""])
    def test_a_name_that_is_none_of_the_hubs_is_refused(self, folder, name):
        with pytest.raises(ValueError, match="is no name of the Hub"), planned_push(folder, name):
            pass

    def test_a_folder_without_a_model_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither a model nor a processor"):
            plan_of(tmp_path)
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            plan_of(tmp_path / "none")

    def test_all_weights_are_no_adapter(self, folder):
        with pytest.raises(CheckpointError, match="holds no trained weights alone"):
            plan_of(folder, weights="adapter")

    def test_an_unfilled_card_is_refused(self, folder):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# GVT\n\nTrained on [More Information Needed]\n")
        with pytest.raises(ValueError, match="nobody filled"):
            plan_of(folder)

    def test_a_card_by_hand_stays_and_loads_the_model_by_its_new_name(self, folder):
        (folder / "README.md").write_text('---\nlicense: mit\n---\n\n# Mine\n\nLoad "gvt-tiny".\n')
        card = next(file for file in plan_of(folder).files if file.path == "README.md")
        assert card.content.decode().endswith(f'# Mine\n\nLoad "{REPO}".\n')

    @pytest.mark.parametrize("self_contained", [False, True])
    def test_the_card_of_a_folder_that_was_renamed_loads_the_model_by_its_new_name(self, folder, self_contained):
        write_card(folder, {}, license="mit", title="Mine")
        renamed = folder.rename(folder.parent / "other")
        plan = plan_of(renamed, self_contained=self_contained)
        card = next(file for file in plan.files if file.path == "README.md").content.decode()
        assert f'model="{REPO}"' in card and 'gvt-tiny"' not in card.replace(REPO, "") and not plan.notes
        assert ("vistok need not be installed" in card) == self_contained

    def test_a_card_by_hand_that_loads_something_of_this_machine_is_noted(self, folder):
        (folder / "README.md").write_text('---\nlicense: mit\n---\n\n# Mine\n\npipeline(model="before")\n')
        assert any("loads 'before'" in note for note in plan_of(folder).notes)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*save_base_models(folder), num_latents=3)
    new = {name: weight for name, weight in model.state_dict().items() if ".resampler" in name or ".projector" in name}
    save_trained_weights(model, folder / "gvt-tiny", new)
    return folder / "gvt-tiny"


class TestTrainedWeights:
    @pytest.fixture
    def trained(self, trained_once, tmp_path):
        return shutil.copytree(trained_once, tmp_path / "trained")

    def test_base_models_in_folders_of_this_machine_are_refused(self, trained):
        with pytest.raises(ValueError, match=r"a folder of this machine.*--full"):
            plan_of(trained, weights="adapter")

    def test_full_adds_the_base_models(self, trained):
        with planned_push(trained, REPO, weights="full") as plan:
            files = {file.path: file for file in plan.files}
            assert "model.safetensors" in files
            assert "trained_weights.safetensors" not in files
            assert json.loads(files["config.json"].content)["base_models"] is None

    def test_names_of_vistok_do_not_go_with_self_contained_code(self, trained):
        config = json.loads((trained / "config.json").read_text())
        config["base_models"] = {"vision": "vistok:dinov2-small", "text": "vistok:smollm2-135m"}
        (trained / "config.json").write_text(json.dumps(config))
        assert "trained_weights.safetensors" in [file.path for file in plan_of(trained, weights="adapter").files]
        with pytest.raises(ValueError, match="push all weights"):
            plan_of(trained, self_contained=True)
