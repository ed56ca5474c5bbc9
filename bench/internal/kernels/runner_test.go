package kernels

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func newRunner(t *testing.T, cases []Case) *Runner {
	t.Helper()
	best := cpu.Variants()
	r := &Runner{
		Variants: best[len(best)-1:], Policies: []kernel.Policy{kernel.Exact, kernel.Fast},
		Time: time.Microsecond, Max: time.Minute, Memory: 1 << 30,
	}
	t.Cleanup(func() { r.Close() })
	if err := r.Prepare(cases); err != nil {
		t.Fatal(err)
	}
	return r
}

// small are cases of every form that take no time.
func small() []Case {
	a := Default([]int{1, 2})
	a.Kinds = Kinds
	a.PrefillLengths, a.DecodeLengths, a.HeadDims, a.PageSizes = []int{70}, []int{150}, []int{64, 128}, []int{64, 0, 16}
	return a.Cases(false)
}

func TestEveryCaseIsComputedAndChecked(t *testing.T) {
	if testing.Short() {
		t.Skip("runs every kernel")
	}
	cases := small()
	r := newRunner(t, cases)
	for _, c := range cases {
		rows, err := r.Run(t.Context(), c)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if len(rows) != 2*len(r.Variants) {
			t.Errorf("%v: %d rows, want one for each of %v and policy", c, len(rows), r.Variants)
		}
		for _, row := range rows {
			if row.Note != "" || !(row.Seconds > 0) || !(row.Error >= 0 && row.Error < 1e-2) {
				t.Errorf("%v %s: %v s, error %v, %s", c, row.Variant, row.Seconds, row.Error, row.Note)
			}
		}
	}
}

// What is a little wrong in one of the rows is told from rounding.
func TestAWrongResultHasNoSpeed(t *testing.T) {
	for _, c := range []Case{
		{Kind: Prefill, KV: Types[0], HeadDim: 64, Heads: 4, KVHeads: 2, Causal: true, Length: 70, Threads: 1},
		{Kind: Decode, KV: Types[0], HeadDim: 64, Heads: 8, KVHeads: 8, PageSize: 16, Length: 150, Threads: 1},
		{Kind: Backward, KV: Types[0], HeadDim: 64, Heads: 4, KVHeads: 2, Causal: true, Length: 70, Threads: 1},
	} {
		r := newRunner(t, []Case{c})
		p, err := newProblem(c, 1, r.arena, r.query, r.backend(1))
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.attention(r.backend(1), kernel.Exact)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if err := p.reference(); err != nil {
			t.Fatal(err)
		}
		p.clear()
		if _, err := p.check(kernel.Exact); err == nil {
			t.Errorf("%v: an output that was not written passes", c)
		}
		run := func() {
			if c.Kind == Backward {
				if err := p.forward(a)(); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.runner(a)(); err != nil {
				t.Fatal(err)
			}
		}
		run()
		if relative, err := p.check(kernel.Exact); err != nil || relative > 2e-6 {
			t.Errorf("%v: error %v, %v", c, relative, err)
		}
		for i, x := range map[string]*tensor.View{"keys": &p.grad.key, "values": &p.grad.value} {
			if c.Kind == Backward {
				x.F32s()[5] += 1
				if _, err := p.check(kernel.Exact); err == nil || !strings.Contains(err.Error(), i) {
					t.Errorf("%v: wrong gradients of %s: %v", c, i, err)
				}
				x.F32s()[5] -= 1
			}
		}
		out := p.out.F32s()
		if c.Kind == Backward {
			out = p.grad.query.F32s()
		}
		for _, spoil := range []func(x float32) float32{
			func(x float32) float32 { return x + 1e-3 }, func(float32) float32 { return float32(math.NaN()) },
		} {
			before := out[len(out)-1]
			out[len(out)-1] = spoil(before)
			if _, err := p.check(kernel.Exact); err == nil || !strings.Contains(err.Error(), "wrong") {
				t.Errorf("%v: %v became %v and passes", c, before, out[len(out)-1])
			}
			out[len(out)-1] = before
		}
		// a key in the place of another: the first bytes become those that follow
		copy(r.arena.bytes[:64*c.KV.DType.Size()], r.arena.bytes[1000:])
		if run(); c.Length <= 100 {
			if _, err := p.check(kernel.Exact); err == nil {
				t.Errorf("%v: another key passes", c)
			}
		}
	}
}

func TestWhatIsTooLargeIsLeftOut(t *testing.T) {
	c := Case{Kind: Prefill, KV: Types[0], HeadDim: 64, Heads: 8, KVHeads: 8, Length: 500, Threads: 1}
	r := newRunner(t, []Case{c})
	r.Max = time.Nanosecond
	rows, err := r.Run(t.Context(), c)
	if err != nil || rows[0].Seconds != 0 || !strings.Contains(rows[0].Note, "-max 1ns") {
		t.Errorf("%+v, %v", rows, err)
	}
	c.Length = 1 << 24
	rows, err = r.Run(t.Context(), c)
	if err != nil || len(rows) != 1 || rows[0].Seconds != 0 || !strings.Contains(rows[0].Note, "GiB") {
		t.Errorf("%+v, %v", rows, err)
	}
	if got := Results(rows, nil); got == nil || len(got) != 0 {
		t.Errorf("results %v, want an empty list", got)
	}
}

// script is a contender whose times are given, and that keeps a log.
func script(log *[]string, name string, alone bool, seconds ...float64) *Contender {
	i := 0
	return &Contender{Variant: name, Alone: alone, Time: func(_ context.Context, n int) (float64, error) {
		*log = append(*log, name)
		if i == len(seconds) {
			return 0, errors.New("broke")
		}
		i++
		return seconds[i-1], nil
	}}
}

func TestContendersAreTimedInTurn(t *testing.T) {
	var log []string
	times := make([]float64, 40)
	for i := range times {
		times[i] = float64(1 + (i*7)%5)
	}
	list := []*Contender{
		script(&log, "a", false, times...), script(&log, "b", false, times[1:]...), script(&log, "p", true, 9, 5, 7, 5, 1000, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
		{Variant: "none", Note: "no counterpart"}, script(&log, "x", false, 1, 1),
	}
	medians, err := Alternate(t.Context(), list, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// a and b are warmed up first, p warms up itself; x breaks in the second round
	if got := strings.Join(log, "")[:12]; got != "abxabpxabpxa" {
		t.Errorf("order %s", got)
	}
	if medians[0] != 3 || medians[1] != 3 || medians[2] != 1 || medians[3] != 0 || medians[4] != 0 {
		t.Errorf("medians %v", medians)
	}
	if list[4].Note != "broke" || list[3].Note != "no counterpart" || list[0].Note != "" {
		t.Errorf("notes %q, %q, %q", list[4].Note, list[3].Note, list[0].Note)
	}
	log = nil
	if _, err := Alternate(t.Context(), []*Contender{script(&log, "p", true, 2, 4, 9)}, 0); err != nil || len(log) != leastRounds {
		t.Errorf("%v, rounds %v, want %d where time is short", err, log, leastRounds)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopper := &Contender{Time: func(context.Context, int) (float64, error) { cancel(); return 1, nil }}
	if _, err := Alternate(ctx, []*Contender{stopper, script(&log, "a", false, times...)}, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		s    []float64
		want float64
	}{{nil, 0}, {[]float64{4}, 4}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 3, 2, 1}, 2.5}} {
		if got := median(c.s); got != c.want {
			t.Errorf("%v: %v, want %v", c.s, got, c.want)
		}
	}
}

func TestResults(t *testing.T) {
	prefill := Case{Kind: Prefill, KV: Types[0], HeadDim: 128, Heads: 8, KVHeads: 2, Causal: true, Length: 1024, Threads: 2}
	decode := Case{Kind: Decode, KV: Types[1], HeadDim: 128, Heads: 32, KVHeads: 8, PageSize: 64, Length: 1024, Threads: 1}
	roofs := Roofs{{Threads: 1, FMA: 100, Read: 10}, {Threads: 2, FMA: 200, Read: 15}}
	rows := []Row{
		{Case: prefill, Backend: "cpu", Variant: "generic/exact", Seconds: 0.02, Error: 1e-7},
		{Case: prefill, Backend: "cpu", Variant: "flash", Peer: "pytorch 2", Seconds: 0.01, Error: math.NaN()},
		{Case: prefill, Backend: "cpu", Peer: "ggml", Note: "no counterpart: for a reason", Error: math.NaN()},
		{Case: decode, Backend: "cpu", Variant: "generic/exact", Seconds: 0.001, Error: 1e-7},
	}
	results := Results(rows, roofs)
	data, err := json.Marshal(results)
	if err != nil {
		t.Fatal(err)
	}
	var back []map[string]any
	if err := json.Unmarshal(data, &back); err != nil || len(back) != 3 {
		t.Fatalf("%v, %d results, want 3: what has no time has none", err, len(back))
	}
	keys := []string{"case", "backend", "variant", "peer", "threads", "gflops", "gbps", "roof", "fraction", "ms_median"}
	for _, object := range back {
		for _, k := range keys {
			if _, ok := object[k]; !ok || len(object) != len(keys) {
				t.Errorf("%v, want the keys %v and no other", object, keys)
			}
		}
	}
	near := func(got, want float64) bool { return math.Abs(got-want) <= 1e-12*want }
	p, d := results[0], results[2]
	if !near(p.GFLOPs, 4*128*8*1024*1025/2/0.02/1e9) || p.Roof != 200 || !near(p.Fraction, p.GFLOPs/200) || !near(p.Median, 20) || p.Threads != 2 || p.Peer != "" {
		t.Errorf("prefill %+v", p)
	}
	if !near(d.GBps, (2*1024*8*128*2+2*32*128*4)/0.001/1e9) || d.Roof != 10 || !near(d.Fraction, d.GBps/10) {
		t.Errorf("decode %+v", d)
	}
	var table strings.Builder
	Print(&table, rows, roofs)
	for _, want := range []string{"200.0 GFLOP/s", "10.0 GB/s", "pytorch 2 flash", "2.00", "no counterpart: for a reason", "1.0e-07", decode.String()} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &table)
		}
	}
}
