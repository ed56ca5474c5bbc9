// Package method is the table of extrapolation methods that bench compares: by
// name, what attention does for a model trained at one length and run at
// another, without training.
package method

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/rope"
)

// Method is a row of the table.
type Method struct {
	Name    string
	Title   string
	Summary string // what it does, in one line
	Paper   string
	URL     string
	Module  string // of attention.Modules, "" where it is of none of them
	Claim   string // for use beyond the trained length without training: "strong", "weak", "none"
	Quick   bool   // among the few of -quick
	Control bool   // not made for a model trained with RoPE and left as it is; here for comparison

	build func(*setting) Setup
}

// Setup is a method made ready for one length.
type Setup struct {
	model.Attending
	Evict  *model.Eviction // not nil: run token by token, dropping keys from the cache
	Params string          // the parameters chosen, for the report

	sees int // keys at most, of a selector; 0: as the mask says
}

// setting is what a method is made ready for.
type setting struct {
	config  model.Config
	base    rope.Base
	trained int     // L
	length  int     // n
	s       float64 // max(1, n/L)
	heads   int
	kvHeads int
	err     error
}

// Setup makes a method ready for sequences of length tokens, or says why it
// cannot be.
func (m *Method) Setup(c model.Config, length int) (Setup, error) {
	s := &setting{
		config:  c,
		base:    rope.Base{HeadDim: c.HeadDim, Theta: c.Base},
		trained: c.Context, length: length, heads: c.Heads, kvHeads: c.KVHeads,
		s: max(1, float64(length)/float64(c.Context)),
	}
	if c.Context < 16 {
		return Setup{}, fmt.Errorf("method: trained length %d, want at least 16", c.Context)
	}
	out := m.build(s)
	if s.err != nil {
		return Setup{}, fmt.Errorf("method: %s: %w", m.Name, s.err)
	}
	if out.Mask.Regions == nil {
		out.Mask = attention.Causal()
	}
	return out, nil
}

// Span is the number of keys a token sees at most, of length: what a method
// costs.
func (s *Setup) Span(length int) int {
	if s.Evict != nil {
		return min(length, s.Evict.Sinks+s.Evict.Recent)
	}
	if s.sees > 0 {
		return min(length, s.sees)
	}
	switch p := s.Position.(type) {
	case attention.LMInfinite:
		return min(length, p.Global+p.Window)
	}
	return min(length, int(s.Mask.Regions[0].Diff.Hi))
}

// Select picks methods by a list of names with commas, or by "all", "positions" (all
// that choose no keys by a selector) or "quick". They come in the order of the table,
// each once.
func Select(list string) ([]*Method, error) {
	chosen := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		switch name {
		case "":
			continue
		case "all", "positions", "quick":
			for i := range table {
				if name == "all" || table[i].Quick || name == "positions" && !table[i].selects() {
					chosen[table[i].Name] = true
				}
			}
		default:
			if !slices.ContainsFunc(table, func(m Method) bool { return m.Name == name }) {
				return nil, fmt.Errorf("method: unknown method %q (have all, positions, quick, %s)", name, strings.Join(Names(), ", "))
			}
			chosen[name] = true
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("method: %q names no method (have all, positions, quick, %s)", list, strings.Join(Names(), ", "))
	}
	var out []*Method
	for i := range table {
		if chosen[table[i].Name] {
			out = append(out, &table[i])
		}
	}
	return out, nil
}

// selects reports whether a method chooses keys by a selector.
func (m *Method) selects() bool {
	x, err := attention.FindModule(m.Module)
	return err == nil && x.Kind == "selector"
}

// Names lists all methods in the order of the table.
func Names() []string {
	var out []string
	for _, m := range table {
		out = append(out, m.Name)
	}
	return out
}

// turning is the number of pairs that make a whole turn in the trained length.
// Of the others, training has shown the model a part of the circle only.
func (s *setting) turning() int {
	n := 0
	for ; n < s.base.HeadDim/2; n++ {
		if wave := 2 * math.Pi * math.Pow(s.base.Theta, float64(2*n)/float64(s.base.HeadDim)); wave > float64(s.trained) {
			break
		}
	}
	return n
}

// selfExtend looks for the smallest group with which distances stay within
// three quarters of the trained length, and failing that within all of it.
func (s *setting) selfExtend() attention.SelfExtend {
	if s.length <= s.trained {
		return attention.SelfExtend{Group: 1, Window: s.trained / 4}
	}
	w := s.trained / 4
	for g := 2; w%g == 0; g *= 2 {
		if w+(s.length-w)/g <= s.trained*3/4 {
			return attention.SelfExtend{Group: g, Window: w}
		}
	}
	for g := w; g < s.trained; g++ {
		if m := (attention.SelfExtend{Group: g, Window: g}); m.LongestLength(s.trained) >= s.length {
			return m
		}
	}
	s.err = fmt.Errorf("no group and window bring %d tokens into the trained %d", s.length, s.trained)
	return attention.SelfExtend{}
}
