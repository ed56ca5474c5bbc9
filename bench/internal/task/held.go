package task

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kvcache/codec"
	"github.com/longctx/longctx/kvcache/policy"
)

// Holding is a way to hold a cache: a policy with its budget, over a codec.
type Holding struct {
	model.HeldConfig
	Planner policy.Planner // nil: all keys stay
	Keys    int            // the budget: mean number of keys of a head
	Second  bool           // the context is read again for the policy's sake, as KVzip does
	Texts   bool           // External are the surprises of tokens, as SirLLM has it
	Mixed   *codec.Mixed   // which pages stay plain; nil: none
}

// Held is what was measured of a Holding.
type Held struct {
	BitsPerByte float64
	Recall      float64 // share of trials with all digits right
	Mass        float64 // share of the weights of the prompt's last queries that lay on keys that stay
	Bytes       float64 // of keys and values, in the mean of the trials, when the prompt was read, cut down and coded
	Pages       float64 // in use, plain and coded, of all heads, likewise
	Keys        float64 // of a head, likewise
	TokensPerS  float64 // of single tokens, the median
}

// Steps of single tokens that are timed in each window, and the tokens that are
// read together after them.
const (
	timedSteps = 16
	stepTokens = 16
	lastSeen   = 32 // queries of a prompt that policies look at
)

// Hold runs trials over a Holding: the prompt at once, then what is judged. step is
// called with the number of tokens each time some are done.
func (e *Evaluator) Hold(ctx context.Context, how *Holding, windows, recall []Trial, step func(tokens int)) (Held, error) {
	h := holding{Evaluator: e, Holding: how, step: step}
	var out Held
	bits, right := 0.0, 0
	for i := range windows {
		logits, err := h.trial(ctx, &windows[i], timedSteps)
		if err != nil {
			return out, err
		}
		bits += crossEntropy(logits, windows[i].Targets) / float64(len(windows[i].Targets)) / math.Ln2
	}
	for i := range recall {
		logits, err := h.trial(ctx, &recall[i], 0)
		if err != nil {
			return out, err
		}
		if correct(logits, recall[i].Targets) == len(recall[i].Targets) {
			right++
		}
	}
	trials := float64(len(windows) + len(recall))
	slices.Sort(h.times)
	out = Held{BitsPerByte: bits / float64(len(windows)), Recall: float64(right) / float64(len(recall)), Mass: h.mass / trials, Bytes: h.bytes / trials, Keys: h.keys / trials, Pages: h.pages / trials}
	if len(h.times) > 0 {
		out.TokensPerS = 1 / h.times[len(h.times)/2]
	}
	return out, nil
}

type holding struct {
	*Evaluator
	*Holding
	step  func(int)
	mass  float64
	bytes float64
	pages float64
	keys  float64
	times []float64
}

// trial returns the logits of the targets. The first of these come after the
// prompt, whose last token belongs to it.
func (h *holding) trial(ctx context.Context, t *Trial, timed int) (_ []float32, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := model.NewHeld(h.Model, h.Backend, h.HeldConfig)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	prompt := len(t.Tokens) - len(t.Targets) + 1
	var out []float32
	add := func(logits []float32) { out = append(out, logits...) }
	if err := h.prompt(m, t.Tokens[:prompt], add); err != nil {
		return nil, err
	}
	since := 0
	for at := prompt; at < len(t.Tokens); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(stepTokens, len(t.Tokens)-at)
		if at-prompt < timed || h.needs()&policy.Each != 0 {
			n = 1
		}
		start := time.Now()
		logits, err := m.Extend(t.Tokens[at:at+n], n, h.observer(false))
		if err != nil {
			return nil, err
		}
		add(logits)
		if at == prompt { // pages are coded when the next token comes
			h.count(m)
		}
		at, since = at+n, since+n
		if since, err = h.planned(m, since); err != nil {
			return nil, err
		}
		if at-prompt <= timed {
			h.times = append(h.times, time.Since(start).Seconds())
		}
	}
	h.step(len(t.Tokens))
	return out, nil
}

func (h *holding) needs() policy.Needs {
	var n policy.Needs
	if h.Planner != nil {
		n = h.Planner.Needs()
	}
	if h.Mixed != nil {
		n |= policy.Sums
	}
	return n
}

// prompt reads a prompt and cuts it down.
func (h *holding) prompt(m *model.Held, tokens []int32, add func([]float32)) error {
	last := 1
	if h.Texts {
		last = len(tokens)
	}
	recent := map[[2]int][]float32{}
	seen := h.observer(true)
	logits, err := m.Extend(tokens, last, func(layer, head int, o *model.Observed) error {
		w, err := o.Weights(1, min(lastSeen, o.Tokens), false)
		if err != nil {
			return err
		}
		recent[[2]int{layer, head}] = w
		if h.Second {
			return nil // what counts is seen when it is read again
		}
		return seen(layer, head, o)
	})
	if err != nil {
		return err
	}
	vocab := len(logits) / last
	add(logits[(last-1)*vocab:])
	if h.Planner == nil {
		h.mass++
		return h.keepPlain(m)
	}
	if h.Texts {
		h.surprise(m, tokens, logits)
	}
	for _, x := range m.Sequence.Heads {
		x.Prompt = len(tokens)
		if h.needs()&policy.Tags != 0 {
			x.Tags = tagsOf(tokens)
		}
	}
	if h.Second {
		if err := m.Reread(tokens, h.observer(true)); err != nil {
			return err
		}
	}
	if err := h.plan(m, recent); err != nil {
		return err
	}
	return h.keepPlain(m)
}

// keepPlain names the pages of important tokens.
func (h *holding) keepPlain(m *model.Held) error {
	if h.Mixed == nil {
		return nil
	}
	for i, x := range m.Sequence.Heads {
		pages, err := h.Mixed.Salient(x.Sum, x.Queries, h.Cache.PageSize)
		if err == nil {
			err = m.KeepPlain(i/m.Sequence.KVHeads, i%m.Sequence.KVHeads, pages)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// count notes what the cache holds.
func (h *holding) count(m *model.Held) {
	keys := 0
	for _, x := range m.Sequence.Heads {
		keys += x.Len()
	}
	h.keys += float64(keys) / float64(len(m.Sequence.Heads))
	held := m.Stats()
	h.bytes, h.pages = h.bytes+float64(held.UsedBytes), h.pages+float64(held.Used+held.CodedUsed)
}

// plan has the policy's plan and carries it out. recent are the weights of the last
// queries, before; nil: they are not judged.
func (h *holding) plan(m *model.Held, recent map[[2]int][]float32) error {
	s := m.Sequence
	if h.needs()&(policy.Keys|policy.Values|policy.Projected) != 0 {
		if err := m.Load(); err != nil {
			return err
		}
	}
	for i, x := range s.Heads {
		if h.needs()&policy.Projected != 0 {
			var err error
			if x.Projected, err = m.Projected(i/s.KVHeads, i%s.KVHeads, x.Value); err != nil {
				return err
			}
		}
		if h.needs()&policy.External != 0 && x.External == nil {
			x.External = make([]float32, x.Len())
		}
	}
	plans, err := h.Planner.Plan(s, h.Keys)
	if err != nil {
		return err
	}
	if recent != nil {
		kept := 0.0
		for i, p := range plans {
			kept += keptOf(recent[[2]int{i / s.KVHeads, i % s.KVHeads}], p.Keep)
		}
		h.mass += kept / float64(len(plans))
	}
	return m.Apply(plans)
}

// keptOf is the share of weights on some keys.
func keptOf(weights []float32, keep []int32) float64 {
	sum, all := 0.0, 0.0
	for _, w := range weights {
		all += float64(w)
	}
	for _, j := range keep {
		sum += float64(weights[j])
	}
	return sum / all
}

// planned makes a plan after since tokens where the policy wants one.
func (h *holding) planned(m *model.Held, since int) (int, error) {
	p, ok := h.Planner.(interface{ Due(policy.Step) bool })
	if !ok {
		return since, nil
	}
	most := 0
	for _, x := range m.Sequence.Heads {
		most = max(most, x.Len())
	}
	if !p.Due(policy.Step{Since: since, Keys: most}) {
		return since, nil
	}
	return 0, h.plan(m, nil)
}

// observer tells heads what their policy needs of the last tokens.
func (h *holding) observer(prompt bool) model.Observer {
	needs := h.needs()
	return func(_, _ int, o *model.Observed) error {
		if needs == 0 {
			return nil
		}
		var x policy.Observation
		for _, w := range []struct {
			need    policy.Needs
			to      *[]float32
			power   int
			window  int
			most    bool
			queries *int
			n       int
		}{
			{policy.Sums, &x.Sum, 1, 0, false, &x.Queries, o.Tokens},
			{policy.Each, &x.Sum, 1, 1, false, &x.Queries, 1},
			{policy.Squares, &x.Square, 2, 0, false, &x.Queries, o.Tokens},
			{policy.Maxima, &x.Max, 1, 0, true, &x.Queries, o.Tokens},
			{policy.Recent, &x.Recent, 1, min(lastSeen, o.Tokens), false, &x.RecentQueries, min(lastSeen, o.Tokens)},
		} {
			if needs&w.need == 0 {
				continue
			}
			var err error
			if *w.to, err = o.Weights(w.power, w.window, w.most); err != nil {
				return err
			}
			*w.queries = w.n
		}
		if needs&policy.QueryMoments != 0 && prompt {
			o.Moments = nil
			for g := range int(o.Query.Shape[1]) {
				m, err := policy.MomentsOf(o.Query, g)
				if err != nil {
					return err
				}
				o.Moments = append(o.Moments, m)
			}
		}
		return o.Observe(x)
	}
}

// surprise gives each token of a prompt what it was unexpected by.
func (h *holding) surprise(m *model.Held, tokens []int32, logits []float32) {
	scores := make([]float32, len(tokens))
	for i, t := range tokens[1:] {
		scores[i+1] = float32(crossEntropy(logits[i*model.Vocab:][:model.Vocab], []byte{byte(t)}))
	}
	for _, x := range m.Sequence.Heads {
		x.External = slices.Clone(scores)
	}
}

// tagsOf are the kinds of bytes that FastGen knows.
func tagsOf(tokens []int32) []policy.Tag {
	tags := make([]policy.Tag, len(tokens))
	for i, t := range tokens {
		switch {
		case t == model.BOS || t == '\n':
			tags[i] = policy.Special
		case t < '0' || t > '9' && t < 'A' || t > 'Z' && t < 'a' || t > 'z':
			tags[i] = policy.Punctuation
		}
	}
	return tags
}
