//go:build cuda && cgo

package cuda

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/longctx/longctx/cuda/internal/simdriver"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// The benchmarks print GFLOP/s, GB/s of keys and values, and the fraction of the
// roof that is the lower one for the case, measured in the same process. On the
// simulated device they are tiny: that they run is all that it can show.

// benchCase is a case of attention.
type benchCase struct {
	queries, keys, batch int // of a sequence; sequences
	heads, kvHeads, dim  int
	kv                   tensor.DType
	page                 int
	causal, backward     bool
}

func (c *benchCase) name() string {
	s := fmt.Sprintf("%v/d=%d/heads=%d-%d/page=%d/batch=%d/queries=%d/keys=%d", c.kv, c.dim, c.heads, c.kvHeads, c.page, c.batch, c.queries, c.keys)
	if c.causal {
		s += "/causal"
	}
	return s
}

// products is the FLOP of one product of all pairs.
func (c *benchCase) products() float64 {
	q, k := float64(c.queries), float64(c.keys)
	pairs := q * k
	if c.causal {
		pairs -= q * (q - 1) / 2
	}
	return 2 * pairs * float64(c.batch*c.heads*c.dim)
}

func (c *benchCase) bytes() float64 {
	return 2 * float64(c.batch*c.keys*c.kvHeads*c.dim) * float64(c.kv.Size())
}

var roofs = sync.OnceValues(func() (Roof, error) {
	b, err := Open(0)
	if err != nil {
		return Roof{}, err
	}
	defer b.Close()
	bytes, d := int64(4<<30), 300*time.Millisecond
	if simdriver.Loaded() {
		bytes, d = 1<<16, time.Millisecond
	}
	return b.MeasureRoof(bytes, d)
})

// TestRoof: what is measured is a number, and a device is not asked for the
// impossible.
func TestRoof(t *testing.T) {
	b := open(t)
	r, err := b.MeasureRoof(1<<16, time.Millisecond)
	if err != nil || !(r.FMA > 0) || !(r.Read > 0) {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("FMA %.4g GFLOP/s, read %.4g GB/s", r.FMA/1e9, r.Read/1e9)
}

// fill writes normally distributed elements, again after a while: zeros would let
// a device run at a higher clock.
func fill(tb testing.TB, b *Backend, v *tensor.View) {
	const period = 1<<20 + 7
	n := min(v.Len(), period)
	x := tensor.New(v.DType, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		x.Set(float32(r.NormFloat64()), i)
	}
	m, block := v.Buf.(*buffer), x.Bytes()
	for at := int64(0); at < m.Size(); at += int64(len(block)) {
		if err := b.dev.copyIn(m.addr+uint64(at), block[:min(int64(len(block)), m.Size()-at)]); err != nil {
			tb.Fatal(err)
		}
	}
}

// setUp makes the tensors of a case, the inputs random, and plans it.
func (c *benchCase) setUp(tb testing.TB, b *Backend) (k kernel.Attention, args *kernel.Args, grads *kernel.BackwardArgs) {
	s := kernel.Spec{Heads: c.heads, KVHeads: c.kvHeads, HeadDim: c.dim, ValueDim: c.dim, DType: tensor.F32, KVDType: c.kv, PageSize: c.page,
		Terms: 1, Scale: 0.1, Backward: c.backward}
	k, err := b.Attention(s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { k.Close() })
	view := func(d tensor.DType, shape ...int64) tensor.View {
		n := d.Size()
		for _, x := range shape {
			n *= x
		}
		m, err := b.Alloc(n)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { m.(*buffer).Close() })
		return tensor.Of(m, d, shape...)
	}
	tokens, h, kv, d := int64(c.batch*c.queries), int64(c.heads), int64(c.kvHeads), int64(c.dim)
	args = &kernel.Args{Query: view(tensor.F32, tokens, h, d), Out: view(tensor.F32, tokens, h, d), LSE: view(tensor.F32, tokens, h)}
	region := kernel.Everywhere
	if c.causal {
		region.Diff.Lo = 0
	}
	batch := kernel.Batch{QueryStart: []int32{0}, Terms: []kernel.Term{{Region: region}}, ScoreScale: make([]float32, tokens)}
	for i := range batch.ScoreScale {
		batch.ScoreScale[i] = 0.1
	}
	pages := 0
	if c.page > 0 {
		pages = (c.keys + c.page - 1) / c.page
		batch.Pages.Indptr = []int32{0}
	}
	for i := range c.batch {
		batch.QueryStart = append(batch.QueryStart, int32((i+1)*c.queries))
		batch.SeqLens = append(batch.SeqLens, int32(c.keys))
		if c.page == 0 {
			batch.KeyStart = append(batch.KeyStart, int32(i*c.keys))
			continue
		}
		for p := range pages { // not in order
			batch.Pages.Indices = append(batch.Pages.Indices, int32(i*pages+(p*7919+i)%pages))
		}
		batch.Pages.Indptr = append(batch.Pages.Indptr, int32(len(batch.Pages.Indices)))
	}
	if c.page > 0 && pages%7919 == 0 {
		tb.Fatal("pages would repeat")
	}
	for _, v := range []*tensor.View{&args.Key, &args.Value} {
		if c.page > 0 {
			*v = view(c.kv, int64(c.batch*pages), int64(c.page), kv, d)
		} else {
			*v = view(c.kv, int64(c.batch*c.keys), kv, d)
		}
	}
	if c.backward {
		grads = &kernel.BackwardArgs{Query: args.Query, Key: args.Key, Value: args.Value, Out: args.Out, LSE: args.LSE, DOut: view(tensor.F32, tokens, h, d),
			DQuery: view(tensor.F32, tokens, h, d), DKey: view(tensor.F32, int64(c.batch*c.keys), kv, d), DValue: view(tensor.F32, int64(c.batch*c.keys), kv, d)}
	}
	for _, v := range []*tensor.View{&args.Query, &args.Key, &args.Value} {
		fill(tb, b, v)
	}
	if c.backward {
		fill(tb, b, &grads.DOut)
	}
	if err := k.Plan(&batch); err != nil {
		tb.Fatal(err)
	}
	return k, args, grads
}

// bench runs a case under its name.
func (c benchCase) bench(b *testing.B) {
	if simdriver.Loaded() {
		c.queries, c.keys, c.heads, c.kvHeads = min(c.queries, 20), min(c.keys, 100), 2, 1
	}
	b.Run(c.name(), c.run)
}

func (c *benchCase) run(b *testing.B) {
	dev, err := Open(0)
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { dev.Close() })
	roof, err := roofs()
	if err != nil {
		b.Fatal(err)
	}
	k, args, grads := c.setUp(b, dev)
	run, flop := func() error { return k.Run(args) }, 2*c.products()
	if c.backward {
		if err := k.Run(args); err != nil {
			b.Fatal(err)
		}
		run, flop = func() error { return k.Backward(grads) }, 5*c.products()
	}
	if err := run(); err != nil {
		b.Fatal(err)
	}
	if err := dev.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		if err := run(); err != nil {
			b.Fatal(err)
		}
	}
	if err := dev.Wait(); err != nil {
		b.Fatal(err)
	}
	seconds := b.Elapsed().Seconds() / float64(b.N)
	flops, read := flop/seconds, c.bytes()/seconds
	b.ReportMetric(flops/1e9, "GFLOP/s")
	b.ReportMetric(read/1e9, "GB/s")
	if flop/roof.FMA > c.bytes()/roof.Read {
		b.ReportMetric(100*flops/roof.FMA, "%FMA")
	} else {
		b.ReportMetric(100*read/roof.Read, "%read")
	}
}

func BenchmarkRoof(b *testing.B) {
	r, err := roofs()
	if err != nil {
		b.Skip(err)
	}
	for range b.N {
	}
	b.ReportMetric(r.FMA/1e9, "GFLOP/s")
	b.ReportMetric(r.Read/1e9, "GB/s")
}

func BenchmarkPrefill(b *testing.B) {
	for _, n := range []int{4096, 16384} {
		for _, causal := range []bool{true, false} {
			for _, x := range []struct {
				kv  tensor.DType
				dim int
			}{{tensor.F32, 128}, {tensor.BF16, 128}, {tensor.F32, 64}, {tensor.F32, 256}} {
				c := benchCase{queries: n, keys: n, batch: 1, heads: 32, kvHeads: 8, dim: x.dim, kv: x.kv, causal: causal}
				c.bench(b)
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, x := range []struct{ keys, batch, heads, page int }{
		{32 << 10, 1, 32, 16}, {32 << 10, 1, 32, 64}, {32 << 10, 8, 32, 16}, {128 << 10, 1, 32, 16}, {128 << 10, 1, 32, 64}, {1 << 20, 1, 32, 16}, {1 << 20, 1, 32, 64},
		{32 << 10, 8, 64, 64}, {128 << 10, 1, 8, 64}, {128 << 10, 1, 32, 0},
	} {
		for _, kv := range []tensor.DType{tensor.BF16, tensor.F16, tensor.F8E4M3} {
			if kv != tensor.BF16 && (x.page != 64 || x.batch != 1 || x.heads != 32) {
				continue
			}
			c := benchCase{queries: 1, keys: x.keys, batch: x.batch, heads: x.heads, kvHeads: 8, dim: 128, kv: kv, page: x.page, causal: true}
			c.bench(b)
		}
	}
}

func BenchmarkBackward(b *testing.B) {
	for _, dim := range []int{64, 128} {
		c := benchCase{queries: 4096, keys: 4096, batch: 1, heads: 32, kvHeads: 8, dim: dim, kv: tensor.F32, causal: true, backward: true}
		c.bench(b)
	}
}

// BenchmarkLaunch is a decode step of 32 layers over one page: what launching
// costs, one call after another and as a graph. Times are of a step.
func BenchmarkLaunch(b *testing.B) {
	const layers = 32
	for _, captured := range []bool{false, true} {
		b.Run(fmt.Sprintf("captured=%v", captured), func(b *testing.B) {
			dev, err := Open(0)
			if err != nil {
				b.Skip(err)
			}
			b.Cleanup(func() { dev.Close() })
			c := benchCase{queries: 1, keys: 16, batch: 1, heads: 32, kvHeads: 8, dim: 128, kv: tensor.BF16, page: 16, causal: true}
			k, args, _ := c.setUp(b, dev)
			step := func() error {
				for range layers {
					if err := k.Run(args); err != nil {
						return err
					}
				}
				return nil
			}
			if captured {
				g, err := dev.Capture(step)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { g.Close() })
				step = g.Launch
			}
			if err := step(); err != nil {
				b.Fatal(err)
			}
			if err := dev.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if err := step(); err != nil {
					b.Fatal(err)
				}
			}
			asked := b.Elapsed()
			if err := dev.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(asked.Seconds()/float64(b.N)*1e6, "host-µs/step")
		})
	}
}

// TestSameBits: prefill, split decode and backward give the same bits however
// often they run. LONGCTX_REPEAT says how often; a device should take 1000.
func TestSameBits(t *testing.T) {
	b, repeat := open(t), 3
	if s := os.Getenv("LONGCTX_REPEAT"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		repeat = n
	}
	for _, c := range []benchCase{
		{queries: 100, keys: 700, batch: 1, heads: 4, kvHeads: 2, dim: 128, kv: tensor.F32, causal: true, backward: true},
		{queries: 1, keys: 3000, batch: 2, heads: 8, kvHeads: 2, dim: 128, kv: tensor.BF16, page: 16, causal: true},
		{queries: 3, keys: 2000, batch: 1, heads: 8, kvHeads: 2, dim: 64, kv: tensor.F16, page: 64, causal: true},
	} {
		t.Run(c.name(), func(t *testing.T) {
			k, args, grads := c.setUp(t, b)
			outputs := []*tensor.View{&args.Out, &args.LSE}
			if c.backward {
				outputs = append(outputs, &grads.DQuery, &grads.DKey, &grads.DValue)
			}
			var want []string
			for n := range repeat {
				if err := k.Run(args); err != nil {
					t.Fatal(err)
				}
				if c.backward {
					if err := k.Backward(grads); err != nil {
						t.Fatal(err)
					}
				}
				for i, v := range outputs {
					got := make([]byte, v.Buf.Size())
					if err := b.CopyOut(got, v.Buf); err != nil {
						t.Fatal(err)
					}
					if n == 0 {
						want = append(want, string(got))
					} else if string(got) != want[i] {
						t.Fatalf("output %d of run %d differs from the first run's", i, n)
					}
				}
			}
		})
	}
}
