package attention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
)

// refused fails unless err is there and names what is wanted.
func refused(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: was taken", what)
	} else if !strings.Contains(err.Error(), "want") {
		t.Errorf("%s: %q does not say what is wanted", what, err)
	}
}

// mustMask fails the test on an error.
func mustMask(t testing.TB) func(attention.Mask, error) attention.Mask {
	return func(m attention.Mask, err error) attention.Mask {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// covers fails unless the regions of a mask are disjoint, hold the pairs of want,
// and call tiles by what is in them.
func covers(t *testing.T, what string, m attention.Mask, n int, want func(i, j int) bool) {
	t.Helper()
	seen := func(i, j int) (hits int) {
		for _, r := range m.Regions {
			if r.Contains(int64(i), int64(j), 0) {
				hits++
			}
		}
		return hits
	}
	for i := range n {
		for j := range n {
			if got := seen(i, j); got > 1 || (got == 1) != want(i, j) {
				t.Fatalf("%s: pair (%d, %d) is in %d regions, seen should be %v", what, i, j, got, want(i, j))
			}
		}
	}
	const tile = 5
	for _, r := range m.Regions {
		for i0 := 0; i0 < n; i0 += tile {
			for j0 := 0; j0 < n; j0 += tile {
				class, hits, all := r.Classify(int64(i0), int64(i0+tile), int64(j0), int64(j0+tile), 0), 0, tile*tile
				for i := i0; i < i0+tile; i++ {
					for j := j0; j < j0+tile; j++ {
						if r.Contains(int64(i), int64(j), 0) {
							hits++
						}
					}
				}
				if class == kernel.Empty && hits > 0 || class == kernel.Full && hits < all {
					t.Fatalf("%s: tile (%d, %d) is %v with %d of %d pairs", what, i0, j0, class, hits, all)
				}
			}
		}
	}
}

func TestZebraSeesItsBlocks(t *testing.T) {
	for _, m := range []attention.Zebra{{Group: 3, Block: 4}, {Group: 2, Block: 5, Back: 1}, {Group: 4, Block: 1, Back: 2}} {
		for layer := range 7 {
			covers(t, fmt.Sprintf("%+v, layer %d", m, layer), mustMask(t)(m.Mask(layer)), 40, func(i, j int) bool {
				return j <= i && (layer%m.Group == 0 || i/m.Block-j/m.Block <= m.Back)
			})
		}
	}
	for _, m := range []attention.Zebra{{Block: 4}, {Group: 2}, {Group: 2, Block: 4, Back: -1}, {Group: 2, Block: kernel.MaxBound}} {
		_, err := m.Mask(0)
		refused(t, fmt.Sprintf("%+v", m), err)
	}
	_, err := attention.Zebra{Group: 2, Block: 4}.Mask(-1)
	refused(t, "layer -1", err)
}

func TestLongformerSeesWindowAndGlobals(t *testing.T) {
	for _, m := range []attention.Longformer{{Window: 3, Global: 2}, {Window: 5}, {Window: 1, Global: 7}} {
		covers(t, fmt.Sprintf("%+v as decoder", m), mustMask(t)(m.Decoder()), 40, func(i, j int) bool {
			return j <= i && (i-j < m.Window || j < m.Global)
		})
		covers(t, fmt.Sprintf("%+v as encoder", m), mustMask(t)(m.Local()), 40, func(i, j int) bool {
			return max(i-j, j-i) < m.Window || j < m.Global
		})
	}
	for _, m := range []attention.Longformer{{}, {Window: 3, Global: -1}} {
		_, err := m.Decoder()
		refused(t, fmt.Sprintf("%+v", m), err)
		_, err = m.Local()
		refused(t, fmt.Sprintf("%+v", m), err)
		_, _, err = m.Steps(4)
		refused(t, fmt.Sprintf("%+v", m), err)
	}
}

// The two Runs of an encoder are the rows of one dense computation.
func TestLongformerEncoderInTwoRuns(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 9, 90} {
		m := attention.Longformer{Window: 4, Global: 3}
		config := attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, Rotary: plain{dim: 8}}
		all := input{config: config, step: attention.Step{QueryLens: []int{n}, KeyLens: []int{n}}}
		all.fill(r)
		local, global, err := m.Steps(n)
		if err != nil {
			t.Fatal(err)
		}
		part := func(mask attention.Mask, step attention.Step, lo, hi int) result {
			in := all
			in.config.Mask, in.step = mask, step
			in.query = packed(all.query, lo, hi)
			if lo == hi {
				return result{heads: 4, dv: 8}
			}
			return run(t, b, in)
		}
		g := min(m.Global, n)
		got := part(attention.Bidirectional(), global, 0, g).append(part(mustMask(t)(m.Local()), local, g, n))
		all.config.Mask = attention.Bidirectional()
		ref := newReference(t, all)
		dense := ref.config.Mask
		for h := range 4 {
			for q := range n {
				ref.config.Mask = dense
				if q >= g {
					ref.config.Mask = mustMask(t)(m.Local())
				}
				ref.checkRow(t, got, 0, 0, 0, q, h, 2e-5)
			}
		}
	}
}

func TestShiftedGroupsSeeTheirGroups(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		m := attention.ShiftedGroups{Size: 2 * (1 + r.IntN(5))}
		kvHeads := 2 * (1 + r.IntN(2))
		queries, keys := []int{r.IntN(9), 1 + r.IntN(20)}, []int{0, 0}
		for s := range keys {
			keys[s] = queries[s] + r.IntN(20)
		}
		blocks, err := m.Blocks(queries, keys, kvHeads)
		if err != nil {
			t.Fatal(err)
		}
		for s := range keys {
			for g := range kvHeads {
				i0 := keys[s] - queries[s]
				half := m.Size / 2
				shift := 0
				if g >= kvHeads/2 {
					shift = half
				}
				count := 0
				if queries[s] > 0 {
					count = (keys[s]-1)/half - i0/half + 1
				}
				for i := i0; i < keys[s]; i++ {
					row := int(blocks.RowStart[s]) + g*count + i/half - i0/half
					for j := range i + 1 {
						got := slices.Contains(blocks.Indices[blocks.Indptr[row]:blocks.Indptr[row+1]], int32(j/half))
						if want := (i+shift)/m.Size == (j+shift)/m.Size; got != want {
							t.Fatalf("%+v, %d KV heads, sequence %d of %d queries and %d keys, KV head %d: i=%d sees j=%d: %v", m, kvHeads, s, queries[s], keys[s], g, i, j, got)
						}
					}
				}
			}
		}
	}
	for _, c := range []struct {
		m             attention.ShiftedGroups
		queries, keys []int
		kvHeads       int
	}{
		{attention.ShiftedGroups{Size: 3}, []int{4}, nil, 2}, {attention.ShiftedGroups{}, []int{4}, nil, 2}, {attention.ShiftedGroups{Size: 4}, []int{4}, nil, 3},
		{attention.ShiftedGroups{Size: 4}, []int{4}, nil, 0}, {attention.ShiftedGroups{Size: 4}, []int{4}, []int{3}, 2}, {attention.ShiftedGroups{Size: 4}, []int{4}, []int{4, 4}, 2}, {attention.ShiftedGroups{Size: 4}, []int{-1}, nil, 2},
	} {
		_, err := c.m.Blocks(c.queries, c.keys, c.kvHeads)
		refused(t, fmt.Sprintf("%+v", c), err)
	}
}

// Each half of the heads is a chunked mask, the upper one of the tokens from
// Size/2 on.
func TestShiftedGroupsOnABackend(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(5, 6))
	m := attention.ShiftedGroups{Size: 64}
	for _, n := range []int{1, 32, 33, 200} {
		in := input{config: attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, Rotary: plain{dim: 8}, Mask: m.Mask()}, step: attention.Step{QueryLens: []int{n}, KeyLens: []int{n}}}
		in.fill(r)
		blocks, err := m.Blocks(in.step.QueryLens, nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		in.step.Blocks = blocks
		got := run(t, b, in)
		plain := in
		plain.step.Blocks = kernel.BlockSparse{}
		plain.config.Mask = attention.Chunked(64)
		lower := newReference(t, plain)
		plain.config.Mask = attention.Causal()
		upper := newReference(t, plain)
		for q := range n {
			lower.checkRow(t, got, 0, 0, 0, q, 0, 2e-5)
			lower.checkRow(t, got, 0, 0, 0, q, 1, 2e-5)
			from := max((q+32)/64*64-32, 0) // of the shifted group
			upper.config.Mask = attention.Mask{Regions: []kernel.Region{{Diff: kernel.Range{Lo: 0, Hi: kernel.MaxBound}, Key: kernel.Range{Lo: int32(from), Hi: kernel.MaxBound}}}}
			upper.checkRow(t, got, 0, 0, 0, q, 2, 2e-5)
			upper.checkRow(t, got, 0, 0, 0, q, 3, 2e-5)
		}
	}
}

func TestLayerMaps(t *testing.T) {
	for _, c := range []struct {
		name string
		m    interface {
			Map() (attention.LayerMap, error)
		}
		reads, writes []int
	}{
		{"cla", attention.CLA{Layers: 5, Group: 2}, []int{0, 0, 1, 1, 2}, []int{0, 2, 4}},
		{"cla of one", attention.CLA{Layers: 3, Group: 1}, []int{0, 1, 2}, []int{0, 1, 2}},
		{"yoco", attention.YOCO{Layers: 6, Window: 8}, []int{0, 1, 2, 3, 3, 3}, []int{0, 1, 2, 3}},
		{"lckv", attention.LCKV{Layers: 6, Bottom: 1, Top: 1}, []int{0, 1, 1, 1, 1, 2}, []int{0, 4, 5}},
		{"lckv of the top", attention.LCKV{Layers: 3}, []int{0, 0, 0}, []int{2}},
	} {
		m, err := c.m.Map()
		if err == nil {
			err = m.Check()
		}
		if err != nil || !slices.Equal(m.Reads, c.reads) || !slices.Equal(m.Writes, c.writes) {
			t.Errorf("%s: %+v, %v, want reads %v and writes %v", c.name, m, err, c.reads, c.writes)
		}
	}
	for _, m := range []interface {
		Map() (attention.LayerMap, error)
	}{
		attention.CLA{}, attention.CLA{Layers: 3}, attention.YOCO{Layers: 3, Window: 1}, attention.YOCO{Layers: 4}, attention.YOCO{Window: 3},
		attention.LCKV{}, attention.LCKV{Layers: 4, Bottom: 2, Top: 2}, attention.LCKV{Layers: 4, Bottom: -1}, attention.LCKV{Layers: 4, Top: -1},
	} {
		_, err := m.Map()
		refused(t, fmt.Sprintf("%T%+v", m, m), err)
	}
}

func TestLayerMapsAreChecked(t *testing.T) {
	for _, m := range []attention.LayerMap{
		{}, {Reads: []int{0}}, {Reads: []int{1}, Writes: []int{0}}, {Reads: []int{-1}, Writes: []int{0}}, {Reads: []int{0, 0}, Writes: []int{2}},
		{Reads: []int{0, 1}, Writes: []int{1, 0}}, {Reads: []int{0, 0}, Writes: []int{0, 1}}, {Reads: []int{0, 0}, Writes: []int{-1}}, {Reads: []int{0, 1}, Writes: []int{1, 1}},
	} {
		if err := m.Check(); err == nil {
			t.Errorf("%+v was taken", m)
		}
		if _, err := m.Mask(0, attention.Causal()); err == nil {
			t.Errorf("%+v: has a mask", m)
		}
	}
	m := attention.OwnLayers(3)
	if err := m.Check(); err != nil || !m.Writer(1) {
		t.Errorf("own layers: %+v, %v", m, err)
	}
	for _, layer := range []int{-1, 3} {
		_, err := m.Mask(layer, attention.Causal())
		refused(t, fmt.Sprint("layer ", layer), err)
	}
}

// A layer that reads what a later one writes does not see its own key.
func TestLayerMapMaskHidesWhatIsNotThere(t *testing.T) {
	m, err := attention.LCKV{Layers: 5, Bottom: 1, Top: 1}.Map()
	if err != nil {
		t.Fatal(err)
	}
	for layer := range 5 {
		first := 0
		if layer > 0 && layer < 3 {
			first = 1
		}
		covers(t, fmt.Sprint("layer ", layer), mustMask(t)(m.Mask(layer, attention.Window(6))), 30, func(i, j int) bool { return i-j >= first && i-j < 6 })
		if got := m.Writer(layer); got != (first == 0) {
			t.Errorf("layer %d writes: %v", layer, got)
		}
	}
	y := attention.YOCO{Layers: 4, Window: 3}
	for layer := range 4 {
		covers(t, fmt.Sprint("yoco, layer ", layer), mustMask(t)(y.Mask(layer)), 20, func(i, j int) bool { return i >= j && (layer >= 2 || i-j < 3) })
	}
	for _, layer := range []int{-1, 4} {
		_, err := y.Mask(layer)
		refused(t, fmt.Sprint("yoco, layer ", layer), err)
	}
}
