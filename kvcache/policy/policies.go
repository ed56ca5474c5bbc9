package policy

import (
	"fmt"
	"strings"
)

// Entry describes a policy.
type Entry struct {
	Name  string `json:"name"`
	Paper string `json:"paper"` // address
	// Kind is "evict" (a Planner that drops keys), "merge" (one that merges them),
	// "channels" (drops channels of keys) or "layers" (merges neighbouring layers).
	Kind   string `json:"kind"`
	Needs  string `json:"needs"`  // of the caller, beyond what attention gives: Planner.Needs has all
	Cost   string `json:"cost"`   // of what it needs
	Limits string `json:"limits"` // "" for none of its own

	// New gives the policy with its paper's settings, made smaller where a budget
	// is too small for them: a Planner of kinds evict and merge, else a ThinK or a
	// MiniCache. What a model learns is neutral and to be replaced.
	New func(Sizes) any `json:"-"`
}

// Sizes are what the settings of policies depend on.
type Sizes struct {
	Layers, KVHeads, HeadDim int
	Keys                     int // mean number of keys that a head is to keep, 8 or more
	PageSize                 int // of the cache, for policies that keep whole pages; 0: 1
}

// window is the number of last keys that always stay, usual or half of the budget.
func (s Sizes) window(usual int) int { return max(min(usual, s.Keys/2), 1) }

// sinks is the number of first keys that always stay, usual or a quarter of the
// budget.
func (s Sizes) sinks(usual int) int { return min(usual, s.Keys/4) }

// streaming is the rest of the budget after the sinks.
func (s Sizes) streaming() Window {
	w := Window{Sinks: s.sinks(4)}
	w.Recent = max(s.Keys-w.Sinks, 1)
	return w
}

// Costs of several policies.
const (
	noStats   = "none"
	rowPass   = "a pass over the rows"
	oneWindow = "one ColumnStats of the last queries"
	eachStep  = "a ColumnStats of all queries at each step"
)

// Policies lists all policies.
func Policies() []Entry {
	out := evictions()
	out = append(out, classes()...)
	return append(out, merges()...)
}

func evictions() []Entry {
	return []Entry{
		{"streaming-llm", "https://arxiv.org/abs/2309.17453", "evict", "", noStats, "what lies between sinks and recent keys is gone", func(s Sizes) any { return StreamingLLM(s.sinks(4)) }},
		{"h2o", "https://arxiv.org/abs/2306.14048", "evict", "", eachStep, "favours early keys", func(Sizes) any { return H2O() }},
		{"scissorhands", "https://arxiv.org/abs/2305.17118", "evict", "", "a ColumnStats of one query at each step", "the history is that since the last plan", func(s Sizes) any { return Scissorhands(s.window(10)) }},
		{"tova", "https://arxiv.org/abs/2401.06104", "evict", "", "a ColumnStats of one query at each step", "heads of a layer keep the same keys", func(Sizes) any { return TOVA() }},
		{"snapkv", "https://arxiv.org/abs/2404.14469", "evict", "", oneWindow, "the end of the prompt must hold the question", func(s Sizes) any { return SnapKV(s.window(32)) }},
		{"pyramidkv", "https://arxiv.org/abs/2406.02069", "evict", "", oneWindow, "SnapKV's", func(s Sizes) any { return PyramidKV(s.window(32)) }},
		{"pyramidinfer", "https://arxiv.org/abs/2405.12532", "evict", "", oneWindow, "saves no computing of the prompt", func(s Sizes) any { return PyramidInfer(s.Layers, 0.2, 0.9) }},
		{"ada-kv", "https://arxiv.org/abs/2407.11550", "evict", "", oneWindow, "SnapKV's", func(s Sizes) any { return AdaKV(s.window(32)) }},
		{"criticalkv", "https://arxiv.org/abs/2502.03805", "evict", "norms of projected values", "one ColumnStats of the last queries, and a product of the values with the output projection", "SnapKV's", func(s Sizes) any { return CriticalKV(s.window(32)) }},
		{"l2-norm", "https://arxiv.org/abs/2406.11430", "evict", "", rowPass, "the first layers of some models are to be kept whole", func(Sizes) any { return L2Norm() }},
		{"keydiff", "https://arxiv.org/abs/2504.15364", "evict", "", rowPass, "", func(Sizes) any { return KeyDiff() }},
		{"vatp", "https://arxiv.org/abs/2406.12335", "evict", "", eachStep, "H2O's", func(s Sizes) any { return VATP(s.sinks(20)) }},
		{"roco", "https://arxiv.org/abs/2402.06262", "evict", "", "two ColumnStats of all queries at each step", "", func(Sizes) any { return RoCo(0.3) }},
		{"kv-compress", "https://arxiv.org/abs/2410.00161", "evict", "", eachStep, "keys go by whole pages", func(s Sizes) any { return KVCompress(max(s.PageSize, 1)) }},
		{"expected-attention", "https://arxiv.org/abs/2510.00636", "evict", "moments of the queries", "a quadratic form a key", "keys and queries rotated alike", func(s Sizes) any { return ExpectedAttention(s.sinks(4)) }},
		{"lagkv", "https://arxiv.org/abs/2504.04704", "evict", "", rowPass, "", func(s Sizes) any { return LagKV(s.sinks(4), max(s.Keys/4, 1)) }},
		{"kvzip", "https://arxiv.org/abs/2505.23416", "evict", "a second reading of the context", "the context is read twice", "", func(Sizes) any { return KVzip() }},
		{"sirllm", "https://arxiv.org/abs/2405.12528", "evict", "entropies of the tokens", noStats, "heads of a layer keep the same keys", func(s Sizes) any { return SirLLM(s.sinks(4), s.window(16)) }},
		{"locret", "https://arxiv.org/abs/2410.01805", "evict", "trained retaining heads", noStats, "", func(s Sizes) any { return Locret(s.window(64)) }},
	}
}

// classes are those that treat heads, layers or phases apart.
func classes() []Entry {
	return []Entry{
		{"fastgen", "https://arxiv.org/abs/2310.01801", "evict", "kinds of tokens", oneWindow, "keeps as many keys as its threshold makes it", func(Sizes) any { return FastGen{Recover: 0.95, Frequent: 0.3, Local: 0.3} }},
		{"razorattention", "https://arxiv.org/abs/2407.15891", "merge", "which heads retrieve; a bias of scores", noStats, "retrieval heads keep all", func(s Sizes) any {
			return RazorAttention{Retrieval: make([]bool, s.Layers*s.KVHeads), Streaming: s.streaming()}
		}},
		{"duoattention", "https://arxiv.org/abs/2410.10819", "evict", "trained gates of the heads", noStats, "retrieval heads keep all", func(s Sizes) any {
			return DuoAttention{Gates: make([]float32, s.Layers*s.KVHeads), Threshold: 0.5, Streaming: s.streaming()}
		}},
		{"simlayerkv", "https://arxiv.org/abs/2410.13846", "evict", "", oneWindow, "layers that are not lazy keep all", func(s Sizes) any { return SimLayerKV{Lazy: s.streaming(), Threshold: 0.9} }},
		{"scope", "https://arxiv.org/abs/2412.13649", "evict", "the length of the prompt", oneWindow, "", func(s Sizes) any {
			return SCOPE{Prefill: SnapKV(s.window(32)), Decode: TOVA(), DecodeKeys: s.Keys}
		}},
	}
}

func merges() []Entry {
	merge := func(m Merge) func(Sizes) any {
		return func(Sizes) any { p := H2O(); p.Merge = m; return p }
	}
	return []Entry{
		{"cam", "https://openreview.net/forum?id=LCTmppB165", "merge", "", eachStep, "merges by chance, with a seed", merge(CaM{Next: 32})},
		{"d2o", "https://arxiv.org/abs/2406.13035", "merge", "", "H2O's, and a product of the keys that go with those that stay", "keys averaged as they are stored", merge(D2O{Beta: 0.7})},
		{"kvmerger", "https://arxiv.org/abs/2407.08454", "merge", "", "H2O's, and a pass over the rows", "keys averaged as they are stored", merge(KVMerger{Threshold: 0.75})},
		{"dmc", "https://arxiv.org/abs/2403.09636", "merge", "decisions of a model trained so", noStats, "keys that are not rotated; keeps as many as the model decides", func(Sizes) any { return DMC{} }},
		{"think", "https://arxiv.org/abs/2407.21018", "channels", "the last queries", rowPass, "keys that are stored rotated", func(s Sizes) any { return ThinK{Keep: max(s.HeadDim*3/5, 1), Queries: 32} }},
		{"minicache", "https://arxiv.org/abs/2405.14366", "layers", "", rowPass, "layers are restored before attention reads them", func(Sizes) any { return MiniCache{T: 0.6, Keep: 0.05} }},
	}
}

// Find returns the policy of a name. The error names those there are.
func Find(name string) (Entry, error) {
	var names []string
	for _, e := range Policies() {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return Entry{}, valueError("name", name, "%s", strings.Join(names, ", "))
}

// Planner is New of an entry that drops or merges keys.
func (e Entry) Planner(s Sizes) (Planner, error) {
	if s.Layers < 1 || s.KVHeads < 1 || s.HeadDim < 1 || s.Keys < 8 {
		return nil, valueError("Sizes", fmt.Sprintf("%+v", s), "1 or more, Keys 8 or more")
	}
	if p, ok := e.New(s).(Planner); ok {
		return p, nil
	}
	return nil, valueError("kind of "+e.Name, e.Kind, "evict or merge")
}
