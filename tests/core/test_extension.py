"""What loading the pack sets up in the host."""

import asyncio

import host_inprocess
import pytest
from attention_loom.kernels.triton import tuning

pytestmark = pytest.mark.host


def test_measured_settings_are_kept_in_the_hosts_user_directory(monkeypatch, tmp_path):
    host_inprocess.import_host()
    import folder_paths
    from attention_loom.nodes.extension import AttentionLoom

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    before = tuning._directory
    try:
        names = [node.define_schema().node_id for node in asyncio.run(AttentionLoom().get_node_list())]
        assert names[:2] == ["LoomUltraViCo", "LoomRIFLEx"] and len(set(names)) == len(names)
        assert tuning._directory == tmp_path / "attention_loom"
        assert not tuning._directory.exists(), "nothing is written before something was measured"
    finally:
        tuning.use_directory(before)
