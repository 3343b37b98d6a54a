"""The faults that perf/faults.py plants: what is taken away, or changed, in which kernel."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault: in a file below kernels/, the first `times` of `old` that follow `after`.

    harmless: why the kernel is right without it, where it is
    """

    kernel: str
    kind: str
    name: str
    file: str
    old: str
    new: str = "pass"
    after: str = ""
    times: int = 1
    harmless: str = ""


COPIED = "nothing is written before copies arrive whose warp has waited"
SYNC, ARRIVE = "cuda.syncthreads()", "bar_warp_sync()"
WARPGROUP = "bar_sync(uint32(1 + warpgroup), uint32(128))"
FAULTS = (
    Fault("decode", "cp.async", "no bar.warp.sync after the copies", "decode/stream.py", ARRIVE,
          after="cp_async_wait(0)"),
    Fault("decode", "cp.async", "a group less is waited for", "decode/stream.py",
          "cp_async_wait(0)", "cp_async_wait(1)"),
    Fault("decode", "barrier", "sums of the slice before overwritten early", "decode/result.py",
          SYNC, after="if begin > first:"),
    Fault("decode", "barrier", "sums of warps added before all have stored", "decode/result.py",
          SYNC, after="acc,\n        )"),
    Fault("decode", "barrier", "tokens cleared without a barrier", "decode/stream.py", SYNC,
          after="at = uint32(at + num_threads * 16)"),
    Fault("decode", "fence", "no fence.mbarrier_init", "decode/stream.py",
          "fence_mbarrier_init()", after="def expect_sums"),
    Fault("decode", "cluster", "no wait for the cluster to begin", "decode/stream.py",
          "cluster_arrive_relaxed()\n        cluster_wait()", after="def expect_sums"),
    Fault("decode", "mbarrier", "sums of the cluster taken without waiting", "decode/result.py",
          "mbarrier_wait(smem + bar_offset, uint32(0))"),
    Fault("decode", "launch", "no griddepcontrol.wait", "decode/stream.py",
          "griddepcontrol_wait()", after="if next_stop == 0:"),
    Fault("decode_wgmma", "proxy", "no fence.proxy.async", "decode_wgmma/program.py",
          "fence_proxy_async_shared()", after="cp_async_wait(in_flight)"),
    Fault("decode_wgmma", "barrier", "a ring slot filled while it is read",
          "decode_wgmma/program.py", "bar_sync(uint32(warpgroup + 1), uint32(128))",
          after="cp_async_wait(in_flight)"),
    Fault("decode_wgmma", "cp.async", "a group less is waited for", "decode_wgmma/program.py",
          "cp_async_wait(in_flight)", "cp_async_wait(in_flight + 1)"),
    Fault("decode_wgmma", "barrier", "sums of the slice before overwritten early",
          "decode_wgmma/result.py", SYNC),
    Fault("decode_wgmma", "barrier", "sums added before all have stored",
          "decode_wgmma/result.py", SYNC, after="store_sums(to, acc)"),
    Fault("decode_wgmma", "launch", "no griddepcontrol.wait", "decode_wgmma/program.py",
          "griddepcontrol_wait()", after="if early:"),
    Fault("decode_wgmma", "wgmma", "no wgmma.fence in the stage's text", "shared/stage_text.py",
          'lines = ["wgmma.fence.sync.aligned;"]', "lines = []"),
    Fault("decode_wgmma", "wgmma", "a group less is waited for in the stage's text",
          "shared/stage_text.py", "wait_group.sync.aligned {younger};",
          "wait_group.sync.aligned {younger + 1};"),
    Fault("prefill", "fence", "no fence.mbarrier_init", "prefill/program.py",
          "fence_mbarrier_init()", after="releases))"),
    Fault("prefill", "proxy", "no fence.proxy.async after clearing rows", "prefill/copies.py",
          "fence_proxy_async_shared()", after="# wgmma reads them"),
    Fault("prefill", "barrier", "no barrier after the mbarriers are made", "prefill/program.py",
          SYNC, after="clear_rows(m)"),
    Fault("prefill", "tensor map", "the tensor map is not acquired", "prefill/copies.py",
          "acquire_tensor_map(gmem)", after="publish_tensor_map(gmem, whole)"),
    Fault("prefill", "launch", "no griddepcontrol.wait by those who multiply",
          "prefill/program.py", "griddepcontrol_wait()", after="setmaxnreg_inc(", harmless=COPIED),
    Fault("prefill", "launch", "no griddepcontrol.wait by those who copy", "prefill/copies.py",
          "griddepcontrol_wait()", after="# the launch before"),
    Fault("prefill", "ring", "a parity that never flips", "prefill/schedule.py", "phase ^ 1",
          "phase"),
    Fault("prefill", "wgmma", "no wgmma.fence", "prefill/products.py", "wgmma_fence()",
          after="a = fragment("),
    Fault("prefill", "wgmma", "a stage released before its products ended",
          "prefill/products.py", "wgmma_wait(in_flight)\n            release", "release",
          after="if step == last_overlap:"),
    Fault("prefill", "wgmma", "sums used without a wait", "prefill/products.py",
          "return (wait_acc(acc[0], 0),)", "return (acc[0],)"),
    Fault("prefill", "wgmma", "products that are not committed", "prefill/products.py",
          "wgmma_commit()", after="acc = mma("),
    Fault("prefill", "wgmma", "no wait in the text of the last stage", "prefill/steps.py",
          '"wgmma.wait_group.sync.aligned 0;", *self._scale_before()', "*self._scale_before()"),
    Fault("prefill", "ring", "a stage given back before its scales were read",
          "prefill/products.py", ARRIVE, after="end_last("),
    Fault("prefill", "counter", "sums published before all warps stored", "prefill/result.py",
          WARPGROUP, after="store_sums(place, acc)"),
    Fault("prefill", "counter", "sums read before the counter was", "prefill/result.py",
          WARPGROUP, after="ready for the next launch\n"),
    Fault("prefill", "counter", "a counter that is not reset", "prefill/result.py",
          "st_global_u32(counter, uint32(0))"),
    Fault("prefill", "counter", "a counter that releases nothing", "prefill/result.py",
          "red_add_release_gpu", "red_add_relaxed_gpu", times=9),
    Fault("prefill", "barrier", "a part's rows overwritten early", "prefill/result.py", WARPGROUP,
          after="inside, row, m, step = target"),
    Fault("prefill", "barrier", "a part's rows read early", "prefill/result.py", WARPGROUP,
          after="stage_strip(part, uint32(to + 32)"),
    Fault("prefill", "cluster", "a cluster barrier that releases nothing", "prefill/result.py",
          "cluster_arrive()", "cluster_arrive_relaxed()", after="send(3, own"),
    Fault("prefill", "cluster", "sums sent before the cluster has begun", "prefill/result.py",
          "cluster_wait()", after="# all blocks have begun"),
    Fault("prefill", "cluster", "no last cluster barrier", "prefill/program.py",
          "cluster_arrive()\n            cluster_wait()", after="# nobody leaves"),
    Fault("marlin", "barrier", "a ring slot filled while it is read", "marlin/program.py", SYNC,
          after="cp_async_wait(in_flight)"),
    Fault("marlin", "barrier", "sums of warps added before all have stored", "marlin/result.py",
          SYNC, after="store_sums(mine + 3"),
    Fault("marlin", "counter", "sums published before all warps stored", "marlin/result.py", SYNC,
          after="store_partial("),
    Fault("marlin", "barrier", "the flag read before it is written", "marlin/result.py", SYNC,
          after="atom_add_acq_rel_gpu(counter"),
    Fault("marlin", "counter", "a counter that is not reset", "marlin/result.py",
          "st_global_u32(counter, uint32(0))"),
    Fault("w4a16_gptq", "barrier", "a ring slot filled while it is read", "gptq/program.py", SYNC,
          after="cp_async_wait(in_flight)"),
    Fault("grouped_decode", "cp.async", "no bar.warp.sync after the copies",
          "grouped_decode/program.py", ARRIVE, after="cp_async_wait(0)"),
    Fault("grouped_decode", "warp", "rows kept before the others have read theirs",
          "grouped_decode/program.py", ARRIVE, after="block, _ = place_of(work, n, slice_id)"),
    Fault("grouped_decode", "warp", "rows read before they are kept",
          "grouped_decode/program.py", ARRIVE, after="st_shared_u32(uint32(own_place()"),
    Fault("grouped_decode", "launch", "no griddepcontrol.wait", "grouped_decode/program.py",
          "griddepcontrol_wait()", after="keep_rows(work, x_divisor, n, load_slice)"),
    Fault("grouped_wgmma", "proxy", "no fence.proxy.async", "grouped_wgmma/segment.py",
          "fence_proxy_async_shared()", after="# wgmma reads"),
    Fault("grouped_wgmma", "ring", "a slot of pairs given back early",
          "grouped_wgmma/program.py", ARRIVE, after="segment, places_of, zero, ring, operands"),
    Fault("grouped_wgmma", "ring", "a slot of pairs filled while it is read",
          "grouped_wgmma/copies.py", "mbarrier_wait(slot_bar + 8, uint32(parity ^ 1))"),
    Fault("grouped_wgmma", "warp", "pairs said to be there before all lanes wrote theirs",
          "grouped_wgmma/copies.py", ARRIVE, after="leave_pairs(slot, topk_weights"),
    Fault("grouped_wgmma", "launch", "no griddepcontrol.wait by those who copy",
          "grouped_wgmma/copies.py", "griddepcontrol_wait()", after="# what comes before"),
    Fault("grouped_wgmma", "launch", "no griddepcontrol.wait by those who multiply",
          "grouped_wgmma/program.py", "griddepcontrol_wait()", after="setmaxnreg_inc(",
          harmless=COPIED),
)  # fmt: skip
