package policy

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestNeedsAreTold: a policy says which head lacks what, and has no other needs than
// it says.
func TestNeedsAreTold(t *testing.T) {
	const n = 40
	forget := map[Needs]func(h *Head){
		Sums: func(h *Head) { h.Sum = nil }, Squares: func(h *Head) { h.Square = nil }, Recent: func(h *Head) { h.Recent = nil },
		Each: func(h *Head) { h.Low = nil }, Maxima: func(h *Head) { h.Max = h.Max[1:] },
		Keys: func(h *Head) { h.Key = tensor.View{} }, Values: func(h *Head) { h.Value = h.Value.Slice(0, 1, n) },
		QueryMoments: func(h *Head) { h.Moments = nil }, Projected: func(h *Head) { h.Projected = nil },
		External: func(h *Head) { h.External = nil }, Tags: func(h *Head) { h.Tags = nil },
	}
	for _, e := range Policies() {
		p, err := e.Planner(Sizes{Layers: 2, KVHeads: 2, HeadDim: 4, Keys: 16})
		if err != nil {
			continue // no Planner
		}
		for need, drop := range forget {
			s := told(rand.New(rand.NewPCG(1, 2)), 2, 2, n, 4)
			drop(s.Heads[3])
			if need == Sums {
				s.Heads[3].Queries = nil // they come together
			}
			_, err := p.Plan(s, 16)
			var missing *MissingError
			if p.Needs()&need == 0 && err == nil {
				continue
			}
			if p.Needs()&need == 0 || !errors.As(err, &missing) || *missing != (MissingError{1, 1, need}) {
				t.Errorf("%s without %v: error %v; it needs %v", e.Name, need, err, p.Needs())
			}
		}
	}
	if got := (Sums | Values).String(); got != "sums, values" || Needs(0).String() != "nothing" {
		t.Errorf("needs are %q", got)
	}
}

// TestBadSettings: what cannot be is a *ValueError, never a panic, and leaves the
// sequence as it was.
func TestBadSettings(t *testing.T) {
	s := told(rand.New(rand.NewPCG(1, 3)), 2, 2, 40, 4)
	apart := s.Clone()
	apart.Heads[1].Positions[0] = 1
	with := func(edit func(*Policy)) *Policy { p := H2O(); edit(p); return p }
	nan := math.NaN()
	rotation := kernel.Rotation{Dim: 6, InvFreq: make([]float64, 3)}
	fail := func(f func() error) error { return f() }
	plan := func(p Planner, s *Sequence, keys int) error { _, err := p.Plan(s, keys); return err }
	for i, err := range []error{
		plan(with(func(p *Policy) { p.Score = nil }), s, 9),
		plan(with(func(p *Policy) { p.Sinks = -1 }), s, 9),
		plan(with(func(p *Policy) { p.Recent = -1 }), s, 9),
		plan(with(func(p *Policy) { p.RecentPart = nan }), s, 9),
		plan(with(func(p *Policy) { p.Block = -1 }), s, 9),
		plan(with(func(p *Policy) { p.Sinks, p.Recent = 4, 2 }), s, 9),
		plan(H2O(), s, 0), plan(H2O(), nil, 9), plan(H2O(), &Sequence{Layers: 1, KVHeads: 1}, 9),
		plan(TOVA(), apart, 9),
		plan(&Policy{Score: Pooled{Kernel: 4}}, s, 9), plan(&Policy{Score: Pooled{Kernel: 3, Window: -1}}, s, 9),
		plan(&Policy{Score: Critical{Of: Accumulated{}, First: 2}}, s, 9), plan(RoCo(-1), s, 9),
		plan(LagKV(4, 0), s, 9), plan(LagKV(-1, 3), s, 9),
		plan(with(func(p *Policy) { p.Budget = Curve{} }), s, 9),
		plan(with(func(p *Policy) { p.Budget = Curve{[]float64{1, -1}} }), s, 9),
		plan(with(func(p *Policy) { p.Budget = Curve{[]float64{1, nan}} }), s, 9),
		plan(with(func(p *Policy) { p.Budget = Pyramid{} }), s, 9),
		plan(with(func(p *Policy) { p.Budget = Adaptive{Floor: 1.5} }), s, 9),
		plan(with(func(p *Policy) { p.Budget = Adaptive{Layers: Pyramid{}} }), s, 9),
		plan(with(func(p *Policy) { p.Merge = CaM{} }), s, 9), plan(with(func(p *Policy) { p.Merge = D2O{Beta: 2} }), s, 9),
		plan(with(func(p *Policy) { p.Merge = KVMerger{Threshold: nan} }), s, 9),
		plan(DuoAttention{Gates: make([]float32, 3), Streaming: Window{Sinks: 1, Recent: 1}}, s, 9), plan(DuoAttention{Gates: make([]float32, 4)}, s, 9),
		plan(DuoAttention{Gates: make([]float32, 4), Streaming: Window{Sinks: 1, Recent: 1}}, nil, 9),
		plan(RazorAttention{Retrieval: make([]bool, 5), Streaming: Window{Sinks: 1, Recent: 1}}, s, 9), plan(RazorAttention{Streaming: Window{Sinks: -1, Recent: 1}}, s, 9),
		plan(SimLayerKV{Lazy: Window{Sinks: 1, Recent: 1}, Threshold: nan}, s, 9), plan(SimLayerKV{}, s, 9),
		plan(FastGen{Recover: 2}, s, 9), plan(SCOPE{Prefill: H2O()}, s, 9), plan(SCOPE{Prefill: H2O(), Decode: H2O()}, s, 9),
		plan(SCOPE{Prefill: H2O(), Decode: &Policy{}, DecodeKeys: 1}, s, 9),
		fail(func() error { _, err := MomentsOf(tensor.New(tensor.F32, 0, 1, 2), 0); return err }),
		fail(func() error { _, err := s.Heads[0].Moments[0].Ahead(&rotation, 0, 5); return err }),
		fail(func() error { _, err := Weights(tensor.New(tensor.F32, 5, 2), 3, 3, 0, 1); return err }),
		fail(func() error { _, err := Weights(tensor.View{}, 0, 0, 0, 1); return err }),
		fail(func() error {
			_, err := ThinK{Keep: 5, Queries: 1}.Channels(tensor.New(tensor.F32, 1, 1, 4), s.Heads[0].Key)
			return err
		}),
		fail(func() error { _, err := ThinK{Keep: 1, Queries: 1}.Channels(tensor.View{}, s.Heads[0].Key); return err }),
		fail(func() error { _, err := TakeChannels(s.Heads[0].Key, []int32{4}); return err }),
		fail(func() error { _, err := TakeChannels(tensor.View{}, nil); return err }),
		fail(func() error { _, err := MiniCache{T: 2}.Merge(s.Heads[0].Key, s.Heads[1].Key); return err }),
		fail(func() error { _, err := MiniCache{}.Merge(s.Heads[0].Key, s.Heads[1].Value); return err }),
		fail(func() error { _, err := new(Pair).Restore(2); return err }),
		s.Applied(nil), s.Applied([]kvcache.Plan{{Keep: []int32{40}}, {}, {}, {}}),
		s.Heads[0].Observe(Observation{Sum: make([]float32, 40)}), s.Heads[0].Observe(Observation{Recent: make([]float32, 40)}),
	} {
		var value *ValueError
		if !errors.As(err, &value) {
			t.Errorf("case %d: error %v, want a ValueError", i, err)
		}
	}
	if s.Heads[0].Len() != 40 || s.Heads[0].Count != nil {
		t.Errorf("the sequence has changed: %+v", s.Heads[0])
	}
}

// TestHardScores: NaNs go first, infinities are in order, equal scores leave the
// later, and heads without keys are no trouble.
func TestHardScores(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	s := NewSequence(1, 1)
	s.Extend(7)
	s.Heads[0].External = []float32{nan, inf, -inf, 1, 1, 1, nan}
	for keys, want := range [][]int{1: {1}, 2: {1, 5}, 3: {1, 4, 5}, 4: {1, 3, 4, 5}, 5: {1, 2, 3, 4, 5}, 6: {1, 2, 3, 4, 5, 6}, 7: between(0, 7), 8: between(0, 7)} {
		if keys == 0 {
			continue
		}
		plans, err := (&Policy{Score: Given{}}).Plan(s, keys)
		if err != nil || !slices.Equal(kept(plans[0]), want) {
			t.Errorf("%d keys: %v (%v), want %v", keys, plans, err, want)
		}
	}
	for _, e := range Policies() {
		if p, err := e.Planner(Sizes{Layers: 2, KVHeads: 2, HeadDim: 4, Keys: 16}); err == nil {
			plans, err := p.Plan(NewSequence(2, 2), 16)
			if err != nil || len(plans) != 4 || len(plans[0].Keep) != 0 {
				t.Errorf("%s of no keys: %v, %v", e.Name, plans, err)
			}
		}
	}
}

// TestTriggers: each is due when it says.
func TestTriggers(t *testing.T) {
	var p Policy
	for i, tt := range []struct {
		trigger Trigger
		step    Step
		want    bool
	}{
		{nil, Step{Prompt: true}, true}, {nil, Step{Since: 99}, false},
		{Every{4}, Step{Prompt: true, Since: 4}, false}, {Every{4}, Step{Since: 3}, false}, {Every{4}, Step{Since: 4}, true}, {Every{}, Step{Since: 4}, false},
		{Over{10}, Step{Keys: 10}, false}, {Over{10}, Step{Keys: 11}, true},
		{Any{AfterPrompt{}, Over{10}}, Step{Keys: 11}, true}, {Any{AfterPrompt{}, Over{10}}, Step{Keys: 1}, false}, {Any{}, Step{Prompt: true}, false},
	} {
		p.Trigger = tt.trigger
		if p.Due(tt.step) != tt.want {
			t.Errorf("case %d: %s is due: %v", i, fmt.Sprint(tt.trigger), !tt.want)
		}
	}
}
