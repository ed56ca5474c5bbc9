package bf16

import (
	"math"
	"unsafe"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Slack is how far a score may exceed m, in units of log 2, before m moves.
const Slack = 8

// Scratch is the memory of one worker for Attend.
type Scratch struct {
	scores  []float32 // [Keys][Lanes]
	weights []uint16  // operand B
}

// NewScratch makes one, aligned to cache lines.
func NewScratch() *Scratch {
	return &Scratch{scores: aligned[float32](Keys * Lanes), weights: aligned[uint16](Keys * Lanes)}
}

// aligned makes a slice that begins at a cache line. Tiles are read by rows of
// 64 bytes; where those cross lines, loads take twice as long.
func aligned[T any](n int) []T {
	var x T
	size := int(unsafe.Sizeof(x))
	s := make([]T, n+64/size)
	at := int(-uintptr(unsafe.Pointer(&s[0]))&63) / size
	return s[at : at+n : at+n]
}

// Uint16s makes n words that begin at a cache line, for packed operands.
func Uint16s(n int) []uint16 { return aligned[uint16](n) }

// Float32s makes n float32 that begin at a cache line, for outputs.
func Float32s(n int) []float32 { return aligned[float32](n) }

// Tile is a tile of keys and values, and strips of rows that attend to it.
type Tile struct {
	Key        []uint16 // [KeyParts] by PackKey or PackKeyF32
	Value      []uint16 // by PackValue
	Query      []uint16 // [strips][QueryParts] by PackPairs
	HeadDim    int
	ValueDim   int
	KeyParts   int // 1 or Exact
	QueryParts int // 1 or Exact, at least KeyParts

	Scale   []float32 // [strips][Lanes] scale of products, in units of log 2
	Visible []uint32  // [strips][Keys] lanes that see a key; nil: all do
	M, L    []float32 // [strips][Lanes]
	Out     []float32 // [strips][ValueDim][Lanes]
}

// Attend takes the tile into the running softmax of the strips. For each row,
// with t = Scale·(query · key) for keys that it sees, NaN skipped in the
// maximum,
//
//	top = max(t); where top > m + Slack: f = 2^(m − top), m = top, l = l·f, o = o·f
//	p = 2^(t − m); l += p; o[d] += bf16(p)·v[d]
//
// with sums in float32 in a free order. m may thus lag behind the maximum of
// the scores: (m, l, o) is a state as those of package vec are, and merges with
// them. It starts as m = kernel.MaxStart, l = 0, o = 0.
func (t *Tile) Attend(sc *Scratch, strips int) {
	if strips <= 0 {
		return
	}
	checkParts(t.KeyParts, t.QueryParts)
	if !Fits(t.HeadDim) || !Fits(t.ValueDim) {
		panic("bf16: head dimensions are multiples of 32 up to 512")
	}
	k, v := t.Key[:t.KeyParts*Keys*t.HeadDim], t.Value[:Keys*t.ValueDim]
	step := t.QueryParts * t.HeadDim * Lanes
	q, rows := t.Query[:strips*step], strips*Lanes
	scale, m, l, o := t.Scale[:rows], t.M[:rows], t.L[:rows], t.Out[:rows*t.ValueDim]
	a := attendArgs{
		scores: &sc.scores[0], weights: &sc.weights[0],
		key: &k[0], value: &v[0], b: &q[0],
		blocks: uintptr(t.HeadDim / 32), valueTiles: uintptr(t.ValueDim / 16),
		aTile: uintptr(t.HeadDim * 32), aPart: uintptr(Keys * t.HeadDim * 2), aParts: uintptr(t.KeyParts), bParts: uintptr(t.QueryParts),
		queryStep: uintptr(step * 2), scale: &scale[0], m: &m[0], l: &l[0], out: &o[0], strips: uintptr(strips),
	}
	if t.Visible != nil {
		a.visible, a.visibleStep = &t.Visible[:strips*Keys][0], Keys*4
	}
	if current() == Go {
		t.attendGo(sc, strips)
		return
	}
	attend(&a)
}

// attendArgs are the arguments of Attend in assembly, which moves them on from
// strip to strip. Steps are in bytes.
type attendArgs struct {
	scores                       *float32
	key, value, b, weights       *uint16
	blocks, valueTiles           uintptr // HeadDim/32, ValueDim/16
	aTile, aPart, aParts, bParts uintptr
	queryStep, visibleStep       uintptr
	scale, m, l, out             *float32
	visible                      *uint32
	strips                       uintptr
}

func (t *Tile) attendGo(sc *Scratch, strips int) {
	step := t.QueryParts * t.HeadDim * Lanes
	for x := range strips {
		multiplyGo(sc.scores, t.Key, t.Query[x*step:], Keys, t.HeadDim, t.KeyParts, t.QueryParts, false)
		var visible []uint32
		if t.Visible != nil {
			visible = t.Visible[x*Keys:][:Keys]
		}
		at, o := x*Lanes, t.Out[x*Lanes*t.ValueDim:][:Lanes*t.ValueDim]
		softmaxGo(sc.scores, t.Scale[at:], visible, t.M[at:][:Lanes], t.L[at:][:Lanes], o)
		for j := range Keys {
			for i := range Lanes {
				sc.weights[atB(j, i)] = tensor.F32ToBF16(sc.scores[j*Lanes+i])
			}
		}
		multiplyGo(o, t.Value, sc.weights, t.ValueDim, Keys, 1, 1, true)
	}
}

func softmaxGo(s, scale []float32, visible []uint32, m, l, o []float32) {
	hidden := float32(math.Inf(-1))
	for i := range Lanes {
		top := m[i]
		for j := range Keys {
			if visible != nil && visible[j]>>i&1 == 0 {
				s[j*Lanes+i] = hidden
				continue
			}
			if s[j*Lanes+i] *= scale[i]; s[j*Lanes+i] > top {
				top = s[j*Lanes+i]
			}
		}
		if top > m[i]+Slack {
			f := kernel.Exp2(m[i] - top)
			m[i], l[i] = top, l[i]*f
			for d := i; d < len(o); d += Lanes {
				o[d] *= f
			}
		}
		sum := float32(0)
		for j := range Keys {
			p := float32(0)
			if visible == nil || visible[j]>>i&1 != 0 {
				p = kernel.Exp2(s[j*Lanes+i] - m[i])
			}
			s[j*Lanes+i] = p
			sum += p
		}
		l[i] += sum
	}
}
