package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// distillCase is a Scores, or a ScoreLoss of a student and a teacher.
type distillCase struct {
	heads             int
	kvHeads, dims     [2]int // of student and teacher
	queries, keys     []int
	query, key        tensor.DType
	scale             [2]float32
	zeroBelow         float32
	gradient, extreme bool
	layout            Layout
	seed              uint64
}

func (t *builder) distill() {
	f32 := tensor.F32
	ragged := distillCase{heads: 4, kvHeads: [2]int{4, 4}, dims: [2]int{26, 64}, queries: []int{5, 0, 64, 1, 130}, keys: []int{5, 3, 64, 200, 70},
		query: f32, key: f32, scale: [2]float32{0.196, 0.125}, gradient: true, seed: 1}
	add := func(name string, change func(*distillCase)) {
		c := ragged
		change(&c)
		t.operation("scores", name, func(t *trial) { t.scores(c) })
		t.operation("scoreloss", name, func(t *trial) { t.scoreLoss(c) })
	}
	add("ragged", func(*distillCase) {})
	add("no-gradient", func(c *distillCase) { c.gradient = false })
	for i, l := range layouts {
		add(fmt.Sprintf("layout=%d", i), func(c *distillCase) { c.layout, c.queries, c.keys = l, []int{9, 70}, []int{9, 66} })
	}
	for i, d := range allTypes() {
		add(d.String(), func(c *distillCase) { c.query, c.key, c.seed = d, allTypes()[(i+1)%3], uint64(10+i) })
	}
	add("groups", func(c *distillCase) { c.heads, c.kvHeads, c.dims = 6, [2]int{2, 3}, [2]int{7, 1} })
	add("dims-exchanged", func(c *distillCase) { c.dims = [2]int{130, 3} })
	add("zero-below", func(c *distillCase) { c.zeroBelow, c.queries, c.keys = -0.4, []int{70, 3}, []int{90, 129} })
	add("extreme", func(c *distillCase) { c.extreme, c.zeroBelow, c.queries, c.keys = true, -1, []int{70, 3}, []int{70, 3} })
	add("no-sequences", func(c *distillCase) { c.queries, c.keys = nil, nil })
	for seed := range uint64(16) {
		add(fmt.Sprintf("random=%d", seed), func(c *distillCase) {
			d, types := &drawn{random: newRandom(seed, 102)}, allTypes()
			c.heads = one(d, 1, 2, 4, 12)
			for i := range c.dims {
				c.dims[i], c.kvHeads[i] = 1+d.below(100), c.heads/one(d, 1, 1, 2)
				c.kvHeads[i] = max(c.kvHeads[i], 1)
			}
			c.queries, c.keys = nil, nil
			for range 1 + d.below(4) {
				c.queries, c.keys = append(c.queries, d.below(one(d, 8, 70, 140))), append(c.keys, d.below(one(d, 8, 70, 140)))
			}
			c.query, c.key = one(d, types[:]...), one(d, types[:]...)
			c.zeroBelow, c.gradient, c.seed = one(d, float32(0), -0.3, -2), d.chance(70), seed
			c.layout = Layout{Gap: d.below(3), Pad: d.below(3), HeadsFirst: d.chance(30), Spread: d.below(3)}
		})
	}
	add("no-keys", func(c *distillCase) { c.queries, c.keys = []int{3}, []int{0} })
}

// compared is a distillCase in memory.
type compared struct {
	c          *distillCase
	query, key [2][]float32
	sides      [2]kernel.ScoreSide
	queryStart []int32
	keyStart   []int32
	pairs      int
}

func (t *trial) compare(c *distillCase, m *memory) (*compared, error) {
	x := &compared{c: c, queryStart: []int32{0}, keyStart: []int32{0}}
	for s := range c.queries {
		x.queryStart, x.keyStart = append(x.queryStart, x.queryStart[s]+int32(c.queries[s])), append(x.keyStart, x.keyStart[s]+int32(c.keys[s]))
		x.pairs += c.queries[s] * c.keys[s]
	}
	for i, name := range []string{"Student", "Teacher"} {
		for k, v := range []struct {
			view  *tensor.View
			data  *[]float32
			dtype tensor.DType
			rows  int
			heads int
		}{{&x.sides[i].Query, &x.query[i], c.query, sum(c.queries), c.heads}, {&x.sides[i].Key, &x.key[i], c.key, sum(c.keys), c.kvHeads[i]}} {
			b, data, err := m.filled(name, v.dtype, c.layout, false, c.seed+uint64(10*i+k), int64(v.rows), int64(v.heads), int64(c.dims[i]))
			if err != nil {
				return nil, err
			}
			if c.extreme {
				data[3*v.heads*c.dims[i]] = float32([]float64{math.NaN(), math.Inf(-1), 1e38, math.Inf(1)}[2*i+k])
				b.fill(data)
			}
			if *v.view, err = m.hand(b); err != nil {
				return nil, err
			}
			*v.data = data
		}
		x.sides[i].Scale = c.scale[i]
	}
	return x, nil
}

// dot is the score of a side in rule 22 and in real numbers, with the size of its
// terms.
func (x *compared) dot(i, token, row, head int) (exact float32, real, size float64) {
	c := x.c
	q, k := x.query[i][(token*c.heads+head)*c.dims[i]:][:c.dims[i]], x.key[i][(row*c.kvHeads[i]+head/(c.heads/c.kvHeads[i]))*c.dims[i]:][:c.dims[i]]
	for d := range q {
		exact = kernel.FMA(k[d], q[d], exact)
		p := float64(k[d]) * float64(q[d])
		real += p
		size += math.Abs(p)
	}
	scale := float64(c.scale[i])
	return exact * c.scale[i], real * scale, size * math.Abs(scale)
}

// each calls f for the pairs of a head, queries ascending and of each the keys.
func (x *compared) each(f func(s, token, row int)) {
	for s := range x.c.queries {
		for t := x.queryStart[s]; t < x.queryStart[s+1]; t++ {
			for j := x.keyStart[s]; j < x.keyStart[s+1]; j++ {
				f(s, int(t), int(j))
			}
		}
	}
}

// scores: rule 22, which is close to the product in real numbers.
func (t *trial) scores(c distillCase) {
	t.with(func(m *memory) error {
		x, err := t.compare(&c, m)
		if err != nil {
			return err
		}
		out, err := m.put("Out", tensor.F32, c.layout, true, true, int64(c.heads), int64(x.pairs))
		if err != nil {
			return err
		}
		s := &x.sides[0]
		a := kernel.ScoresArgs{Query: s.Query, Key: s.Key, QueryStart: x.queryStart, KeyStart: x.keyStart, Scale: s.Scale, Policy: t.policy}
		if a.Out, err = m.hand(out); err != nil {
			return err
		}
		if err := t.backend.Scores(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		got := out.words()
		want, at := words{tensor.F32, make([]uint32, len(got.bits))}, 0
		for h := range c.heads {
			x.each(func(_, token, row int) {
				exact, real, size := x.dot(0, token, row, h)
				want.bits[at] = math.Float32bits(exact)
				t.close("Out", at, got.value(at), real, size*float64(c.dims[0]+2))
				at++
			})
		}
		if t.policy == kernel.Exact {
			t.differ(differ("Out", &got, &want))
		}
		t.result.Hash = hash(&got)
		return nil
	})
}

// close: got is want, but for the rounding of sums of some size. Of what is wrong
// the first is told, and the rest counted.
func (t *trial) close(name string, at int, got, want, size float64) {
	if !finite(size) || !(math.Abs(want) < 1e37) || math.Abs(got-want) <= size*0x1p-23+1e-37 {
		return
	}
	if t.result.Differences > 0 {
		t.result.Differences++
		return
	}
	t.wrong("%s: element %d is %v, want %v", name, at, got, want)
}

// lossOracle is what a ScoreLoss gives, by rule 23 and in real numbers.
type lossOracle struct {
	exact      [3][]float32 // loss, dQuery, dKey
	real, size [3][]float64
	doubtful   bool // a score lies about as near to ZeroBelow as it is rounded
}

func (x *compared) lossOracle(gradient float32) *lossOracle {
	c, o := x.c, new(lossOracle)
	dim, group := c.dims[0], c.heads/c.kvHeads[0]
	for i, n := range []int{sum(c.queries) * c.heads, len(x.query[0]), len(x.key[0])} {
		o.exact[i], o.real[i], o.size[i] = make([]float32, n), make([]float64, n), make([]float64, n)
	}
	for h := range c.heads {
		x.each(func(_, token, row int) {
			var score [2]float32
			var real, size [2]float64
			zeroed := false
			for i := range score {
				if score[i], real[i], size[i] = x.dot(i, token, row, h); c.zeroBelow < 0 {
					o.doubtful = o.doubtful || math.Abs(real[i]-float64(c.zeroBelow)) < 1e-5*(size[i]+1) || !finite(size[i])
					if score[i] <= c.zeroBelow {
						score[i], real[i], size[i] = 0, 0, 0
						zeroed = zeroed || i == 0
					}
				}
			}
			e, re := score[0]-score[1], real[0]-real[1]
			es := (size[0] + size[1]) * float64(max(dim, c.dims[1])+4) // of the error of e, in units of the last place
			at := token*c.heads + h
			o.exact[0][at] = kernel.FMA(e, e, o.exact[0][at])
			o.real[0][at] += re * re
			o.size[0][at] += 2*math.Abs(re)*es + es*es*0x1p-23 + re*re*float64(sum(c.keys))
			g, rg := e*gradient, re*float64(gradient)
			if zeroed {
				g, rg, es = 0, 0, 0
			}
			terms := float64(sum(c.keys) + sum(c.queries)*group)
			q0, k0 := at*dim, (row*c.kvHeads[0]+h/group)*dim
			for d := range dim {
				for side, v := range [2]float32{x.key[0][k0+d], x.query[0][q0+d]} {
					to := q0 + d
					if side == 1 {
						to = k0 + d
					}
					o.exact[1+side][to] = kernel.FMA(v, g, o.exact[1+side][to])
					o.real[1+side][to] += float64(v) * rg
					o.size[1+side][to] += math.Abs(float64(v)) * (math.Abs(float64(gradient))*es + math.Abs(rg)*terms)
				}
			}
		})
	}
	return o
}

// scoreLoss: rule 23, which is close to the formula in real numbers.
func (t *trial) scoreLoss(c distillCase) {
	t.with(func(m *memory) error {
		x, err := t.compare(&c, m)
		if err != nil {
			return err
		}
		names := []string{"Out", "DQuery", "DKey"}
		a := kernel.ScoreLossArgs{Student: x.sides[0], Teacher: x.sides[1], QueryStart: x.queryStart, KeyStart: x.keyStart,
			ZeroBelow: c.zeroBelow, Policy: t.policy, Gradient: 0.37}
		shapes := [][]int64{{int64(sum(c.queries)), int64(c.heads)}, {int64(sum(c.queries)), int64(c.heads), int64(c.dims[0])}, {int64(sum(c.keys)), int64(c.kvHeads[0]), int64(c.dims[0])}}
		var blocks []*block
		for i, view := range []*tensor.View{&a.Out, &a.DQuery, &a.DKey} {
			if i > 0 && !c.gradient {
				break
			}
			b, err := m.put(names[i], tensor.F32, c.layout, true, true, shapes[i]...)
			if err != nil {
				return err
			}
			if *view, err = m.hand(b); err != nil {
				return err
			}
			blocks = append(blocks, b)
		}
		if err := t.backend.ScoreLoss(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		o := x.lossOracle(a.Gradient)
		var all []*words
		for i, b := range blocks {
			got := b.words()
			want := words{tensor.F32, make([]uint32, len(got.bits))}
			for at, v := range o.exact[i] {
				want.bits[at] = math.Float32bits(v)
				if !o.doubtful || t.policy == kernel.Exact {
					t.close(names[i], at, got.value(at), o.real[i][at], o.size[i][at])
				}
			}
			if t.policy == kernel.Exact {
				t.differ(differ(names[i], &got, &want))
			}
			all = append(all, &got)
		}
		t.result.Hash = hash(all...)
		return nil
	})
}

// tapFaults and scoreLossFaults spoil what is not a view.
var tapFaults = []operandFault{
	{"starts-descend", func(o *operands) { o.scores.QueryStart = []int32{0, 4, 3} }},
	{"starts-short", func(o *operands) { o.scores.KeyStart = []int32{0, 4} }},
	{"starts-too-large", func(o *operands) { o.scores.KeyStart[2]++ }},
	{"scale-nan", func(o *operands) { o.scores.Scale = float32(math.NaN()) }},
	{"policy", func(o *operands) { o.scores.Policy = 9 }},
	{"zero", func(o *operands) { o.scores = kernel.ScoresArgs{} }},
}

var scoreLossFaults = []operandFault{
	{"zero-below-positive", func(o *operands) { o.scoreLoss.ZeroBelow = 1 }},
	{"one-gradient", func(o *operands) { o.scoreLoss.DKey = tensor.View{} }},
	{"gradient-inf", func(o *operands) { o.scoreLoss.Gradient = float32(math.Inf(1)) }},
	{"teacher-scale", func(o *operands) { o.scoreLoss.Teacher.Scale = float32(math.Inf(1)) }},
	{"starts-negative", func(o *operands) { o.scoreLoss.QueryStart[1] = -1 }},
	{"policy", func(o *operands) { o.scoreLoss.Policy = 9 }},
	{"zero", func(o *operands) { o.scoreLoss = kernel.ScoreLossArgs{} }},
}
