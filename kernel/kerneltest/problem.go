package kerneltest

import (
	"math"
	"slices"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Problem is one attention as a model asks for it. Its inputs follow from Seed.
type Problem struct {
	Config attention.Config // Policy is the check's
	Step   attention.Step   // KV stays nil: paged keys, too, are given by KeyLens
	Seed   uint64
	Layout Layout

	Spread     float64 // standard deviation of queries and keys; 0: 1
	RelBias    int     // entries of the relative bias table of a head
	Special    []Special
	Scaled     bool     // FP8 keys and values have scales
	Coded      codedMix // with Config.Coding: which pages are coded
	Straight   bool     // levels are the codes
	DOutF32    bool     // Backward: DOut is F32 whatever DType is
	WithDLSE   bool     // Backward: LSE has a gradient too
	WithoutLSE bool

	Power, Window int // ColumnStats: of its arguments; Power 0: 1
	Maximum       bool

	// Drawn marks a random case. Among millions of elements some pass twice the
	// naive error, and the LSE that a gradient starts from has an error of its
	// own: 16 times is allowed. The bits of Exact are compared all the same.
	Drawn bool

	// Wild marks scores so large that float32 cannot hold them to 1e-6: the
	// rule of twice the naive error remains.
	Wild bool
}

// Special puts a value into the inputs: for KV head or query head Head, into
// the features of the row with this index in its sequence.
type Special struct {
	Tensor        byte // 'q', 'k', 'v'
	Sequence      int
	Lo, Hi        int // rows Lo <= r < Hi of the sequence; of 'q', query tokens
	Head, Feature int // −1: all
	Value         float32
}

// inputs are the values of a Problem, rounded to their element types. Keys are
// in the order of sequences and key indices, wherever their rows lie.
type inputs struct {
	query, key, value                      []float32
	slopes, relBias, prefixBias, sinkLogit []float32
	dout, dlse                             []float32

	// How keys and values are stored, where that is not as they are.
	storedKey, storedValue []float32 // plain FP8 rows, before their scale
	keyScale, valueScale   []float32 // [KVHeads]
	codedKey, codedValue   *codedRows
}

// normal fills in the defaults that attention.New would.
func (p Problem) normal() *Problem {
	c := &p.Config
	if c.ValueDim == 0 {
		c.ValueDim = c.HeadDim
	}
	if c.DType == 0 {
		c.DType = tensor.F32
	}
	if c.KVDType == 0 {
		c.KVDType = c.DType
	}
	if c.Position == nil {
		c.Position = attention.Absolute{}
	}
	if c.Scale == 0 {
		c.Scale = 1 / math.Sqrt(float64(c.HeadDim))
	}
	if g := &c.Coding.Value.Group; *g == defaultGroup {
		*g = kernel.DefaultValueGroup(c.ValueDim)
	}
	if p.Step.KeyLens == nil {
		p.Step.KeyLens = p.Step.QueryLens
	}
	if p.Spread == 0 {
		p.Spread = 1
	}
	if p.Power == 0 {
		p.Power = 1
	}
	return &p
}

func sum(x []int) int {
	n := 0
	for _, v := range x {
		n += v
	}
	return n
}

func (p *Problem) tokens() int { return sum(p.Step.QueryLens) }
func (p *Problem) keys() int   { return sum(p.Step.KeyLens) }

func (p *Problem) doutType() tensor.DType {
	if p.DOutF32 {
		return tensor.F32
	}
	return p.Config.DType
}

// makeInputs draws the inputs of a normal Problem.
func (p *Problem) makeInputs() *inputs {
	c := &p.Config
	draw := func(stream uint64, d tensor.DType, n int, spread float64) []float32 {
		r, out := newRandom(p.Seed, stream), make([]float32, n)
		for i := range out {
			out[i] = float32(round(d, r.normal()*spread))
		}
		return out
	}
	t, k := p.tokens(), p.keys()
	in := &inputs{
		query: draw(1, c.DType, t*c.Heads*c.HeadDim, p.Spread),
		key:   draw(2, c.KVDType, k*c.KVHeads*c.HeadDim, p.Spread),
		value: draw(3, c.KVDType, k*c.KVHeads*c.ValueDim, 1),
	}
	if c.Score.Slopes {
		for h := range c.Heads {
			in.slopes = append(in.slopes, float32(math.Ldexp(1, -1-h%8)))
		}
	}
	if c.Score.RelBias {
		in.relBias = draw(4, tensor.F32, c.Heads*p.RelBias, 1)
	}
	if c.Score.PrefixBias { // sums of log forget gates: each is negative
		in.prefixBias = draw(5, tensor.F32, k*c.Heads, 0.1)
		at := 0
		for _, n := range p.Step.KeyLens {
			for i := at * c.Heads; i < (at+n)*c.Heads; i++ {
				x := -math.Abs(float64(in.prefixBias[i]))
				if i >= (at+1)*c.Heads {
					x += float64(in.prefixBias[i-c.Heads])
				}
				in.prefixBias[i] = float32(x)
			}
			at += n
		}
	}
	if c.Score.SinkLogit {
		in.sinkLogit = draw(6, tensor.F32, c.Heads, 2)
	}
	if c.Backward {
		in.dout = draw(7, p.doutType(), t*c.Heads*c.ValueDim, 1)
		if p.WithDLSE {
			in.dlse = draw(8, tensor.F32, t*c.Heads, 1)
		}
	}
	for _, s := range p.Special {
		in.special(p, s)
	}
	in.store(p)
	return in
}

func (in *inputs) special(p *Problem, s Special) {
	c := &p.Config
	x, heads, dim, start := in.query, c.Heads, c.HeadDim, sum(p.Step.QueryLens[:s.Sequence])
	if s.Tensor != 'q' {
		x, heads, start = in.key, c.KVHeads, sum(p.Step.KeyLens[:s.Sequence])
	}
	if s.Tensor == 'v' {
		x, dim = in.value, c.ValueDim
	}
	for r := start + s.Lo; r < start+s.Hi; r++ {
		for h := range heads {
			for d := range dim {
				if (s.Head < 0 || s.Head == h) && (s.Feature < 0 || s.Feature == d) {
					x[(r*heads+h)*dim+d] = s.Value
				}
			}
		}
	}
}

// part is the Problem of query tokens lo <= r < hi of sequence s alone, with
// the first keys of its keys. Where that cuts keys off, the mask must not have
// shown them to these queries. Trees and blocks cannot be cut.
func (p *Problem) part(in *inputs, s, lo, hi, keys int) (*Problem, *inputs) {
	q, c := *p, &p.Config
	t0, k0 := sum(p.Step.QueryLens[:s]), sum(p.Step.KeyLens[:s])
	st := &q.Step
	st.QueryLens, st.KeyLens, st.KeyStarts = []int{hi - lo}, []int{keys}, nil
	if st.QueryPos != nil {
		st.QueryPos = st.QueryPos[t0+lo : t0+hi]
	}
	if st.KeyPos != nil {
		st.KeyPos = st.KeyPos[k0 : k0+keys]
	}
	if st.PrefixLens != nil {
		st.PrefixLens = st.PrefixLens[s : s+1]
	}
	if st.Documents != nil {
		st.Documents = st.Documents[k0 : k0+keys]
	}
	out := *in
	t := func(x []float32, row int) []float32 { return slices.Clone(cut(x, t0+lo, t0+hi, row)) }
	k := func(x []float32, row int) []float32 { return slices.Clone(cut(x, k0, k0+keys, row)) }
	out.query = t(in.query, c.Heads*c.HeadDim)
	out.key, out.value = k(in.key, c.KVHeads*c.HeadDim), k(in.value, c.KVHeads*c.ValueDim)
	out.prefixBias = k(in.prefixBias, c.Heads)
	out.dout, out.dlse = t(in.dout, c.Heads*c.ValueDim), t(in.dlse, c.Heads)
	return &q, &out
}

func cut(x []float32, lo, hi, row int) []float32 {
	if x == nil {
		return nil
	}
	return x[lo*row : hi*row]
}

// rotary is a rotation method: fixed frequencies.
type rotary kernel.Rotation

func (r rotary) Rotation(int) (kernel.Rotation, error) { return kernel.Rotation(r), nil }

// positions is a position module: fixed Terms.
type positions struct {
	name  string
	terms []attention.Term
}

func (p positions) Name() string                        { return p.name }
func (p positions) Terms(int) ([]attention.Term, error) { return p.terms, nil }
