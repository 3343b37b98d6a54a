"""Whether a program's products run side by side, and its accumulators stay in registers."""

from ferrum_numba.compile import build, link


def assert_overlaps(kernel, config, monkeypatch):
    """No spills, no product taken apart, and the linker does not say that it serialised them."""
    logs, run = [], link._link

    def logged(*args):
        cubin, log = run(*args)
        logs.append(log)
        return cubin, log

    monkeypatch.setattr(link, "_link", logged)
    binary = build(kernel, config, "sm_90a", use_cache=False)
    assert "serialized" not in logs[-1]
    assert binary.spill_bytes == 0
    assert binary.stack_bytes == 0
    assert ".f64" not in binary.ptx
    if binary.sass is not None:
        # one product a strip and step of 16 of k, of blocks of few pairs too
        loops = 2 if getattr(config, "short_m", 0) else 1
        assert binary.sass["HGMMA"] == loops * config.tile_k // 16 * config.strips
        assert binary.sass["USETMAXREG"] == 2
        assert "STL" not in binary.sass
