package soak

import (
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

const dim = 32 // of keys and of values

// token is what the model knows of a key: its rows are a function of all that the
// token saw, as in a language model, unless it was merged.
type token struct {
	id       int32
	state    uint64
	position int32
	merged   []float32 // nil: rows by state
}

// sequence is what the model knows of a sequence of a cache.
type sequence struct {
	scope  int // of scopes
	tokens []token
	next   int32 // position of the next token
	pure   bool  // computed from its tokens alone, each at its ordinal
}

// scopes are who may share: the same string in different places is not the same.
var scopes = []prefix.Prompt{
	{Namespace: "a"}, {Salt: "a"}, {Adapter: "a"}, {Namespace: "a", Salt: "b"}, {Namespace: "ab"}, {Namespace: "b", Adapter: "a"},
}

func (s *sequence) clone() *sequence {
	c := *s
	c.tokens = slices.Clone(s.tokens)
	return &c
}

// prompt is what the keys of s were computed from.
func (s *sequence) prompt() *prefix.Prompt {
	ids := make([]int32, len(s.tokens))
	for i, t := range s.tokens {
		ids[i] = t.id
	}
	return promptOf(s.scope, ids)
}

func promptOf(scope int, ids []int32) *prefix.Prompt {
	p := scopes[scope]
	p.Tokens = ids
	return &p
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// push adds a token.
func (s *sequence) push(id int32) token {
	state := mix(uint64(s.scope) + 0x9e3779b97f4a7c15)
	if n := len(s.tokens); n > 0 {
		state = s.tokens[n-1].state
	}
	t := token{id: id, state: mix(state + 0x9e3779b97f4a7c15*uint64(id+1)), position: s.next}
	s.next++
	s.tokens = append(s.tokens[:len(s.tokens):len(s.tokens)], t)
	return t
}

// cut takes back all tokens but the first n.
func (s *sequence) cut(n int) {
	if n < len(s.tokens) {
		s.next = s.tokens[n].position
		if n > 0 {
			s.next = max(s.next, s.tokens[n-1].position+1)
		}
	}
	s.tokens = s.tokens[:n:n]
}

// shape is the rows of a token: of some heads of some layers.
type shape struct {
	dtype         tensor.DType
	layers, heads int
	layer0, head0 int // of the first in the model
}

// at is the place of an element in token.merged.
func (g shape) at(layer, kind, head, d int) int {
	return ((layer*2+kind)*g.heads+head)*dim + d
}

func (g shape) len() int { return g.layers * 2 * g.heads * dim }

// element is feature d of head of the key (kind 0) or value (1) of a token, as a
// plain page holds it. Before it is stored it has 8 bits and lies in [−2, 2).
func (g shape) element(t *token, layer, kind, head, d int) float32 {
	if t.merged != nil {
		return t.merged[g.at(layer, kind, head, d)]
	}
	return g.round(raw(t.state, layer+g.layer0, kind, head+g.head0, d))
}

func raw(state uint64, layer, kind, head, d int) float32 {
	x := mix(state + uint64(((layer*2+kind)*8+head)*dim+d)*0x9e3779b97f4a7c15)
	return (float32(x>>56) - 128) / 64
}

func (g shape) round(x float32) float32 {
	if g.dtype == tensor.F32 {
		return x
	}
	return g.dtype.ToF32(g.dtype.FromF32(x))
}

// rows are those of new tokens, as a model hands them to Append: [tokens, heads, dim].
func (g shape) rows(layer, kind int, tokens []token) tensor.View {
	v := tensor.New(tensor.F32, int64(len(tokens)), int64(g.heads), dim)
	x := v.F32s()
	for i := range tokens {
		for h := range g.heads {
			for d := range dim {
				x[(i*g.heads+h)*dim+d] = raw(tokens[i].state, layer+g.layer0, kind, h+g.head0, d)
			}
		}
	}
	return v
}

// apply is what a plan makes of tokens: rule 19 of package kernel.
func (g shape) apply(tokens []token, p *kvcache.Plan) []token {
	out, merges := make([]token, 0, len(p.Keep)), p.Merges
	for _, j := range p.Keep {
		t := tokens[j]
		var terms []kvcache.Merge
		for len(merges) > 0 && merges[0].Into == j {
			terms, merges = append(terms, merges[0]), merges[1:]
		}
		if len(terms) > 0 {
			merged := make([]float32, g.len())
			for layer := range g.layers {
				for kind := range 2 {
					for h := range g.heads {
						for d := range dim {
							sum := float32(0)
							for _, m := range terms {
								w := m.Key
								if kind == 1 {
									w = m.Value
								}
								if w != 0 {
									sum = kernel.FMA(g.element(&tokens[m.From], layer, kind, h, d), w, sum)
								}
							}
							merged[g.at(layer, kind, h, d)] = g.round(sum)
						}
					}
				}
			}
			t.merged = merged
		}
		out = append(out, t)
	}
	return out
}
