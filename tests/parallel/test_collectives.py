from tests.parallel.collectives import collective_bytes

HLO = """
  %all-gather.1 = f32[64,128]{1,0} all-gather(f32[8,128]{1,0} %p), channel_id=1
  %ar = (f32[], bf16[3,2]{1,0}) all-reduce(f32[] %a, bf16[3,2]{1,0} %b), to_apply=%add
  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(f32[8]{0} %q), dimensions={0}
  %d = f32[64]{0} all-gather-done((f32[8]{0}, f32[64]{0}) %s)
  %x = pred[5]{0} all-to-all(pred[5]{0} %m), dimensions={0}
  %fusion = f32[64]{0} fusion(f32[64]{0} %all-gather.1), kind=kLoop
"""


def test_results_are_counted_once():
    assert collective_bytes(HLO) == {"all-gather": 64 * 128 * 4 + 64 * 4, "all-reduce": 4 + 3 * 2 * 2, "all-to-all": 5}
