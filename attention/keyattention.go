package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// KeyAttention is attention over Keys: each query token and KV head is a sequence of
// its own, of the group's query heads and one KV head, whose pages are single keys.
// So no key is copied, and every backend with paged keys has it.
type KeyAttention struct {
	config    Config
	ranks     bool
	a         *Attention
	kv        keySource
	lens      []int
	queryPos  []int32
	keyLayout [4]int64 // rows a page, slot and head apart, and rows
}

// NewKeyAttention makes one for a Config whose Mask is zero: a token sees the keys
// listed for it. Of scores only SoftCap can be had. Regions of a Position count places
// in the list, and PosMaps take positions: with a window of ReRoPE's kind the last keys
// of each list are to be all those within it. With ranks, the keys of a list
// have the positions 0, 1, …, and the query that of the last one; otherwise
// positions are indices. KeyStorage PostRoPE or no rotation need neither.
func NewKeyAttention(b kernel.Backend, c Config, ranks bool) (*KeyAttention, error) {
	if c.KVHeads < 1 || c.Heads%c.KVHeads != 0 {
		return nil, fmt.Errorf("attention: NewKeyAttention: KVHeads is %d, want a divisor of Heads %d", c.KVHeads, c.Heads)
	}
	if len(c.Mask.Regions) > 0 || c.Mask.Kinds != 0 || c.Backward || c.ColumnStats || !c.Coding.IsZero() || c.PageSize < 1 {
		return nil, fmt.Errorf("attention: NewKeyAttention: want no Mask, Backward, ColumnStats and Coding, and a PageSize of at least 1, have %d", c.PageSize)
	}
	if s := (Score{SoftCap: c.Score.SoftCap}); c.Score != s {
		return nil, fmt.Errorf("attention: NewKeyAttention: Score is %+v, want no more than SoftCap", c.Score)
	}
	k := &KeyAttention{config: c, ranks: ranks}
	c.Heads, c.KVHeads, c.PageSize, c.Mask = c.Heads/c.KVHeads, 1, 1, Bidirectional()
	var err error
	if k.a, err = New(b, c); err != nil {
		return nil, err
	}
	k.kv.storage = c.KeyStorage
	return k, nil
}

// keySource is a KVSource of single keys.
type keySource struct {
	storage kernel.KeyStorage
	lens    []int32
	indptr  []int32
	rows    []int32
}

func (s *keySource) KeyStorage() kernel.KeyStorage { return s.storage }
func (s *keySource) PageSize() int                 { return 1 }
func (s *keySource) KeyPositions([]int32) []int32  { return nil }
func (s *keySource) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], s.lens...)
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], s.indptr...)
	dst.Pages.Indices = append(dst.Pages.Indices[:0], s.rows...)
	return nil
}

// rowLayout is how many rows lie between pages, slots and heads of v
// [pages, PageSize, KVHeads, dim], in units of the largest row that all of them are
// a whole number of, and how many rows there are.
func rowLayout(v *tensor.View) (out [4]int64, unit int64, err error) {
	if v.Rank != 4 || v.Shape[0] < 1 || v.Shape[1] < 1 || v.Shape[2] < 1 {
		return out, 0, fmt.Errorf("%v, want [pages, PageSize, KVHeads, dim]", v)
	}
	for i := range 3 {
		if v.Stride[i] < 0 {
			return out, 0, fmt.Errorf("%v, want no negative strides", v)
		}
		if v.Shape[i] > 1 {
			for a, b := unit, v.Stride[i]; ; a, b = b, a%b {
				if b == 0 {
					unit = a
					break
				}
			}
		}
	}
	unit = max(unit, 1)
	out[3] = 1
	for i := range 3 {
		if v.Shape[i] > 1 {
			out[i] = v.Stride[i] / unit
			out[3] += out[i] * (v.Shape[i] - 1)
		}
	}
	if out[3] > math.MaxInt32 {
		return out, 0, fmt.Errorf("%v, want at most 2³¹−1 rows, have %d", v, out[3])
	}
	return out, unit, nil
}

// Plan prepares a step of lists, for a layer's keys and values as key lies.
func (k *KeyAttention) Plan(in *Selection, keys *Keys, key tensor.View) error {
	if err := in.check(); err != nil {
		return err
	}
	tokens, kvHeads := int(in.Query.Shape[0]), in.KVHeads
	if kvHeads != k.config.KVHeads || keys == nil || len(keys.Indptr) != tokens*kvHeads+1 {
		return fmt.Errorf("attention: KeyAttention: lists of Keys do not belong to %d tokens and %d KV heads, want %d of them and one more bound", tokens, k.config.KVHeads, tokens*k.config.KVHeads)
	}
	layout, _, err := rowLayout(&key)
	if err != nil {
		return fmt.Errorf("attention: KeyAttention: keys are %w", err)
	}
	if key.Shape[1] != int64(in.PageSize) || key.Shape[2] != int64(kvHeads) {
		return fmt.Errorf("attention: KeyAttention: keys are %v, want pages of %d and %d KV heads", &key, in.PageSize, kvHeads)
	}
	s := &k.kv
	s.lens, s.indptr, s.rows = s.lens[:0], append(s.indptr[:0], keys.Indptr...), s.rows[:0]
	k.lens, k.queryPos, k.keyLayout = k.lens[:0], k.queryPos[:0], layout
	t := 0
	in.eachKey(func(seq int, own int64) {
		pages := in.Pages.Indices[in.Pages.Indptr[seq]:in.Pages.Indptr[seq+1]]
		for g := range kvHeads {
			list := keys.Of(t, g, kvHeads)
			s.lens, k.lens, k.queryPos = append(s.lens, int32(len(list))), append(k.lens, 1), append(k.queryPos, int32(own))
			for _, j := range list {
				if page := int(j) / in.PageSize; j < 0 || page >= len(pages) || int64(pages[page]) >= key.Shape[0] || pages[page] < 0 {
					err = fmt.Errorf("attention: KeyAttention: key %d of token %d, want 0 to %d and pages of %v", j, t, in.SeqLens[seq]-1, &key)
					return
				}
				s.rows = append(s.rows, int32(int64(pages[int(j)/in.PageSize])*layout[0]+int64(int(j)%in.PageSize)*layout[1]+int64(g)*layout[2]))
			}
		}
		t++
	})
	if err != nil {
		return err
	}
	step := Step{QueryLens: k.lens, KV: s, ByRank: k.ranks}
	if !k.ranks {
		step.QueryPos, step.KeyPos = k.queryPos, keys.Indices
	}
	return k.a.Plan(step)
}

// Run computes one layer of the planned step: args as for attention over all keys.
func (k *KeyAttention) Run(args *kernel.Args) error {
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	one := *args
	for _, v := range []struct {
		name string
		view *tensor.View
	}{{"Query", &one.Query}, {"Out", &one.Out}, {"LSE", &one.LSE}} {
		if v.view.IsZero() && v.name == "LSE" {
			continue
		}
		if err := groups(v.view, int64(k.config.KVHeads)); err != nil {
			return fmt.Errorf("attention: KeyAttention: %s is %w", v.name, err)
		}
	}
	for _, v := range []struct {
		name string
		view *tensor.View
	}{{"Key", &one.Key}, {"Value", &one.Value}} {
		layout, unit, err := rowLayout(v.view)
		if err == nil && layout != k.keyLayout {
			err = fmt.Errorf("%v, want rows in the order of the keys of Plan", v.view)
		}
		if err != nil {
			return fmt.Errorf("attention: KeyAttention: %s is %w", v.name, err)
		}
		rows := *v.view
		rows.Shape = [tensor.MaxRank]int64{layout[3], 1, 1, v.view.Shape[3]}
		rows.Stride = [tensor.MaxRank]int64{unit, 0, 0, v.view.Stride[3]}
		*v.view = rows
	}
	return k.a.Run(&one)
}

// Close frees what the kernel holds.
func (k *KeyAttention) Close() error { return k.a.Close() }

// groups makes of [tokens, Heads, …] the rows of each KV head, [tokens·kvHeads,
// Heads/kvHeads, …].
func groups(v *tensor.View, kvHeads int64) error {
	if v.Rank < 2 || v.Shape[1]%kvHeads != 0 || v.Shape[1] < 1 {
		return fmt.Errorf("%v, want [tokens, heads, …] with a multiple of %d heads", v, kvHeads)
	}
	group := v.Shape[1] / kvHeads
	if v.Shape[0] > 1 && v.Stride[0] != v.Shape[1]*v.Stride[1] {
		return fmt.Errorf("%v, want heads that lie evenly from token to token", v)
	}
	v.Shape[0], v.Shape[1], v.Stride[0] = v.Shape[0]*kvHeads, group, group*v.Stride[1]
	return nil
}
