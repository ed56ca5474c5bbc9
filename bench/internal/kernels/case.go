package kernels

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Kind is what a case does.
type Kind string

const (
	Prefill  Kind = "prefill"  // as many queries as keys
	Decode   Kind = "decode"   // one query that sees all keys
	Backward Kind = "backward" // the gradients of prefill
)

// Kinds lists them.
var Kinds = []Kind{Prefill, Decode, Backward}

// Type is how keys and values are stored, here and in the peers.
type Type struct {
	DType tensor.DType // of plain pages
	Codec kernel.Codec // of full pages; paged only
	Torch string       // attribute of the module torch; "" has none
	GGML  int          // enum ggml_type, of as many bits where Codec is set; −1 has none
}

// Types lists the types that are measured. A new one is a line.
var Types = []Type{
	{tensor.F32, kernel.NoCodec, "float32", 0},
	{tensor.F16, kernel.NoCodec, "float16", 1},
	{tensor.BF16, kernel.NoCodec, "bfloat16", 30},
	{tensor.F8E4M3, kernel.NoCodec, "", -1},
	{tensor.F8E5M2, kernel.NoCodec, "", -1},
	{tensor.F16, kernel.Int8, "", 8}, // q8_0
	{tensor.F16, kernel.Int4, "", 2}, // q4_0
	{tensor.F16, kernel.Int2, "", -1},
}

func (t Type) String() string {
	if t.Codec != kernel.NoCodec {
		return t.Codec.String()
	}
	return t.DType.String()
}

// ParseType finds a Type by name.
func ParseType(name string) (Type, error) {
	for _, t := range Types {
		if t.String() == name {
			return t, nil
		}
	}
	return Type{}, fmt.Errorf("element type %q, have %v", name, Types)
}

// Case is attention of one sequence with so many threads.
type Case struct {
	Kind           Kind
	KV             Type
	HeadDim        int
	Heads, KVHeads int
	Causal         bool // prefill and backward
	PageSize       int  // 0: contiguous
	Length         int  // keys
	Threads        int
}

// String names all but the threads.
func (c Case) String() string {
	form := "full"
	switch {
	case c.Kind == Decode && c.PageSize == 0:
		form = "contiguous"
	case c.Kind == Decode:
		form = fmt.Sprintf("page=%d", c.PageSize)
	case c.Causal:
		form = "causal"
	}
	if c.Kind != Decode && c.PageSize > 0 {
		form += fmt.Sprintf(",page=%d", c.PageSize)
	}
	return fmt.Sprintf("%s/kv=%v/d=%d/heads=%d-%d/%s/n=%d", c.Kind, c.KV, c.HeadDim, c.Heads, c.KVHeads, form, c.Length)
}

// Queries is the number of query tokens.
func (c Case) Queries() int {
	if c.Kind == Decode {
		return 1
	}
	return c.Length
}

// Pairs is the number of pairs of a query and a key that it sees, for a head.
func (c Case) Pairs() float64 {
	n := float64(c.Length)
	switch {
	case c.Kind == Decode:
		return n
	case c.Causal:
		return n * (n + 1) / 2
	}
	return n * n
}

// FLOP is the number of floating-point operations; see the package comment.
func (c Case) FLOP() float64 {
	products := 2.0
	if c.Kind == Backward {
		products = 5
	}
	return 2 * products * float64(c.HeadDim*c.Heads) * c.Pairs()
}

// Bytes is what must be read and written at the least; see the package comment.
func (c Case) Bytes() float64 { return float64(c.kvBytes() + 2*c.queryBytes() + c.gradientBytes()) }

// gradientBytes is the size of the gradients of the output, the queries, keys
// and values, all F32, and of the LSE.
func (c Case) gradientBytes() int64 {
	if c.Kind != Backward {
		return 0
	}
	n, q, kv := int64(c.Length), int64(c.Heads*c.HeadDim), int64(c.KVHeads*c.HeadDim)
	return 4 * n * (2*q + 2*kv + int64(c.Heads))
}

// Intensity is FLOP over bytes.
func (c Case) Intensity() float64 { return c.FLOP() / c.Bytes() }

// kvBytes is the size of the keys and values of a layer, with the scales and
// zeros of coded pages: those that are full.
func (c Case) kvBytes() int64 {
	n, heads, dim := int64(c.Length), int64(c.KVHeads), int64(c.HeadDim)
	coded := int64(0)
	if c.KV.Codec != kernel.NoCodec {
		size := int64(c.PageSize)
		pages := n / size
		n -= pages * size
		q := c.coding()
		coded = pages * heads * (q.Key.PageBytes(c.PageSize, c.HeadDim) + q.Value.PageBytes(c.PageSize, c.HeadDim))
	}
	return coded + 2*n*heads*dim*c.KV.DType.Size()
}

// coding is how coded pages hold keys and values.
func (c Case) coding() kernel.Coding { return kernel.KIVI(c.KV.Codec, c.HeadDim) }

// queryType is the type of queries and outputs: BF16 in prefill over BF16, as
// models in that type run, where a matrix unit can serve Fast.
func (c Case) queryType() tensor.DType {
	if c.Kind == Prefill && c.KV.DType == tensor.BF16 {
		return tensor.BF16
	}
	return tensor.F32
}

// queryBytes is the size of the queries, and of the outputs.
func (c Case) queryBytes() int64 {
	return c.queryType().Size() * int64(c.Queries()) * int64(c.Heads*c.HeadDim)
}

// Axes spans cases. Every list has at least one entry.
type Axes struct {
	Kinds                         []Kind
	PrefillLengths, DecodeLengths []int
	Types                         []Type
	HeadDims, Groups, PageSizes   []int
	Causal                        []bool
	Threads                       []int
}

// Default spans what the command measures unless it is told otherwise.
func Default(threads []int) Axes {
	lengths := []int{1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10}
	return Axes{
		Kinds: Kinds[:2], PrefillLengths: lengths, DecodeLengths: append(slices.Clone(lengths), 256<<10, 512<<10, 1<<20),
		Types: Types, HeadDims: []int{64, 128, 256}, Groups: []int{1, 4, 8}, PageSizes: []int{64, 0},
		Causal: []bool{true, false}, Threads: threads,
	}
}

// Quick spans less.
func Quick(threads []int) Axes {
	a := Default(threads)
	a.PrefillLengths, a.DecodeLengths = []int{1 << 10, 4 << 10}, []int{4 << 10, 32 << 10}
	return a
}

// longPrefill is the length from which prefill has as few heads as its group
// allows, and two at least: its cost grows with the square.
const longPrefill = 32 << 10

// base is the value that an axis keeps while another varies.
func base[T comparable](list []T, want T) T {
	if slices.Contains(list, want) {
		return want
	}
	return list[0]
}

// Cases lists all lengths and threads of the base case, 128 features, groups of
// 4 query heads, and F32, causal in prefill or F16, pages of 64 in decode; and
// of every case that differs from it in one axis. Full lists every combination.
func (a *Axes) Cases(full bool) []Case {
	var cases []Case
	for _, kind := range a.Kinds {
		lengths, forms, standard := a.PrefillLengths, a.causal(), Case{KV: Types[0], Causal: true}
		if kind == Decode {
			lengths, forms, standard = a.DecodeLengths, a.pages(), Case{KV: Types[1], PageSize: 64}
		}
		baseForm := base(forms, form{standard.Causal, standard.PageSize})
		for _, t := range a.Types {
			for _, dim := range a.HeadDims {
				for _, group := range a.Groups {
					for _, f := range forms {
						page := f.page
						if kind == Backward && (t.Codec != kernel.NoCodec || t.DType.Float8()) {
							continue // gradients are of plain tensors
						}
						if t.Codec != kernel.NoCodec && page == 0 {
							if kind == Decode {
								continue // coded pages are pages
							}
							page = 64
						}
						off := differ(t != base(a.Types, standard.KV)) + differ(dim != base(a.HeadDims, 128)) +
							differ(group != base(a.Groups, 4)) + differ(f != baseForm)
						if off > 1 && !full {
							continue
						}
						for _, n := range lengths {
							for _, threads := range a.Threads {
								c := Case{kind, t, dim, 0, 0, f.causal, page, n, threads}
								c.setHeads(group)
								cases = append(cases, c)
							}
						}
					}
				}
			}
		}
	}
	return cases
}

// setHeads takes 8 KV heads in decode; in prefill 8 query heads, or fewer.
func (c *Case) setHeads(group int) {
	switch {
	case c.Kind == Decode:
		c.KVHeads = 8
	case c.Length >= longPrefill:
		c.KVHeads = max(2/group, 1)
	default:
		c.KVHeads = max(8/group, 1)
	}
	c.Heads = c.KVHeads * group
}

// form is the axis that the kinds do not share.
type form struct {
	causal bool
	page   int
}

func (a *Axes) causal() (forms []form) {
	for _, c := range a.Causal {
		forms = append(forms, form{causal: c})
	}
	return forms
}

func (a *Axes) pages() (forms []form) {
	for _, p := range a.PageSizes {
		forms = append(forms, form{page: p})
	}
	return forms
}

func differ(b bool) int {
	if b {
		return 1
	}
	return 0
}
