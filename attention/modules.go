package attention

import (
	"fmt"
	"slices"
	"strings"

	"github.com/longctx/longctx/tensor"
)

// Module describes a technique of this package.
type Module struct {
	Name  string `json:"name"`
	Paper string `json:"paper"` // address
	// Kind is "position" (a Position), "mask", "score" (tables of scores),
	// "layers" (which layers share a cache), "composite" (several passes),
	// "selector" (chooses blocks of keys, or keys), "levels" (positions made from
	// text) or "loss" (what a student learns from a teacher).
	Kind     string `json:"kind"`
	Claim    string `json:"claim"`    // beyond the trained length: "strong" (retrieval stays), "weak" (perplexity stays flat) or "none"
	Needs    string `json:"needs"`    // of model and cache, "" for any model with RoPE
	Backends string `json:"backends"` // it is tested on, itself or by the masks and scores it is made of
	Composes string `json:"composes"` // with what

	// New returns a value of the module's type with the usual settings for a
	// model. What a model learns is neutral and to be replaced.
	New func(ModelSizes) any `json:"-"`
}

// ModelSizes are what the settings of modules depend on.
type ModelSizes struct {
	Trained                         int // tokens of a sequence in training, at least 64
	Layers, Heads, KVHeads, HeadDim int
}

// What several modules have in common.
const (
	trainedSo  = "a model trained so"
	everywhere = "cpu, cuda"
	anyOther   = "masks, scores, frequencies of package rope; paged and coded keys"
	ofPosition = "any position module, scores, frequencies of package rope; paged and coded keys"
	unrotated  = "masks, scores without a second table of its kind; paged and coded keys; no rotation"
)

// Modules lists the techniques of this package by kind.
func Modules() []Module {
	out := positionModules()
	out = append(out, maskModules()...)
	out = append(out, scoreModules()...)
	out = append(out, layerModules()...)
	out = append(out, compositeModules()...)
	for _, s := range Selectors() {
		out = append(out, s.module())
	}
	return append(out, Module{TinyBERT{}.Name(), arxiv + "1909.10351", "loss", "none", "a teacher with as many heads; encoders", everywhere,
		"Bidirectional masks; heads of any size; ragged batches", func(ModelSizes) any { return TinyBERT{ZeroBelow: -100} }})
}

// FindModule returns the module of a name. The error names those there are.
func FindModule(name string) (Module, error) {
	var names []string
	for _, m := range Modules() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Module{}, fmt.Errorf("attention: module %q, want one of %s", name, strings.Join(names, ", "))
}

const arxiv = "https://arxiv.org/abs/"

func positionModules() []Module {
	post := "KeyStorage PreRoPE or PostRoPE"
	pre := "KeyStorage PreRoPE"
	of := func(name, paper, claim, needs string, make func(ModelSizes) any) Module {
		return Module{name, paper, "position", claim, needs, everywhere, anyOther, make}
	}
	return []Module{
		of(NoPE{}.Name(), arxiv+"2305.19466", "weak", trainedSo, func(ModelSizes) any { return NoPE{} }),
		of(ReRoPE{}.Name(), "https://kexue.fm/archives/9708", "strong", pre, func(s ModelSizes) any { return ReRoPE{Window: s.Trained / 2} }),
		of(LeakyReRoPE{}.Name(), "https://kexue.fm/archives/9708", "strong", pre, func(s ModelSizes) any { return LeakyReRoPE{Window: s.Trained / 2, Factor: 16} }),
		of(SelfExtend{}.Name(), arxiv+"2401.01325", "strong", pre, func(s ModelSizes) any { return SelfExtend{Group: 8, Window: s.Trained / 32 * 8} }),
		of(DCA{}.Name(), arxiv+"2402.17463", "strong", post, func(s ModelSizes) any { return DCAFor(s.Trained) }),
		of(STRING{}.Name(), arxiv+"2410.18745", "none", post, func(s ModelSizes) any { return STRINGFor(s.Trained) }),
		of(LMInfinite{}.Name(), arxiv+"2308.16137", "weak", pre, func(s ModelSizes) any { return LMInfinite{Global: 10, Window: s.Trained - 10} }),
		of(StreamingLLM{}.Name(), arxiv+"2309.17453", "weak", post, func(s ModelSizes) any { return StreamingLLM{Sinks: 4, Recent: s.Trained - 4} }),
	}
}

func maskModules() []Module {
	of := func(name, paper, needs, with string, make func(ModelSizes) any) Module {
		return Module{name, paper, "mask", "none", needs, everywhere, with, make}
	}
	return []Module{
		of(Longformer{}.Name(), arxiv+"2004.05150", trainedSo, ofPosition, func(s ModelSizes) any { return Longformer{Window: s.Trained / 2, Global: 1} }),
		of(Zebra{}.Name(), arxiv+"2312.08618", trainedSo, ofPosition, func(s ModelSizes) any { return Zebra{Group: 4, Block: s.Trained / 4, Back: 1} }),
		of(ShiftedGroups{}.Name(), arxiv+"2309.12307", "an even number of KV heads; made for training", ofPosition+"; not with other block lists",
			func(s ModelSizes) any { return ShiftedGroups{Size: s.Trained / 4 * 2} }),
	}
}

func scoreModules() []Module {
	of := func(name, paper, claim, needs, with string, make func(ModelSizes) any) Module {
		return Module{name, paper, "score", claim, needs, everywhere, with, make}
	}
	levels := func(s ModelSizes) BiPE { return BiPE{Ends: []int{s.Trained}} }
	hirope := of(HiRoPE{}.Name(), arxiv+"2403.19115", "strong", "the ends of segments", "masks, scores; keys stored rotated by package rope",
		func(s ModelSizes) any { return HiRoPE{Split: s.HeadDim / 4, BiPE: levels(s)} })
	bipe := of(BiPE{}.Name(), arxiv+"2401.16421", "weak", trainedSo+"; the ends of segments", anyOther, func(s ModelSizes) any { return levels(s) })
	hirope.Kind, bipe.Kind = "levels", "levels"
	return []Module{
		of(KERPLE{}.Name(), arxiv+"2205.09921", "weak", trainedSo, unrotated, func(s ModelSizes) any {
			return KERPLE{A: repeated(1, s.Heads), B: repeated(1, s.Heads)}
		}),
		of(FIRE{}.Name(), arxiv+"2310.04418", "weak", trainedSo, unrotated+"; past its threshold decode alone", func(s ModelSizes) any {
			m := FIRE{C: 0.1, Threshold: float64(s.Trained), In: repeated(1, 32), InBias: repeated(0, 32), OutBias: repeated(0, s.Heads)}
			for range s.Heads {
				m.Out = append(m.Out, repeated(0, 32))
			}
			return m
		}),
		of(Forgetting{}.Name(), arxiv+"2503.02130", "weak", trainedSo+"; a running sum a token and head", anyOther, func(s ModelSizes) any { return Forgetting{Heads: s.Heads} }),
		of(EntropyScale{}.Name(), arxiv+"2401.07004", "weak", "", "everything but LogN", func(s ModelSizes) any { return EntropyScale{Trained: s.Trained, First: 2} }),
		bipe, hirope,
	}
}

func repeated(x float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = x
	}
	return out
}

func layerModules() []Module {
	of := func(name, paper, claim string, make func(ModelSizes) any) Module {
		return Module{name, paper, "layers", claim, trainedSo, everywhere, "everything", make}
	}
	return []Module{
		of(CLA{}.Name(), arxiv+"2405.12981", "none", func(s ModelSizes) any { return CLA{Layers: s.Layers, Group: 2} }),
		of(YOCO{}.Name(), arxiv+"2405.05254", "strong", func(s ModelSizes) any { return YOCO{Layers: s.Layers, Window: s.Trained / 4} }),
		of(LCKV{}.Name(), arxiv+"2405.10637", "none", func(s ModelSizes) any { return LCKV{Layers: s.Layers, Bottom: s.Layers / 4, Top: s.Layers / 4} }),
	}
}

func compositeModules() []Module {
	of := func(name, paper, claim, needs, backends, with string, make func(ModelSizes) any) Module {
		return Module{name, paper, "composite", claim, needs, backends, with, make}
	}
	return []Module{
		of(MLA{}.Name(), arxiv+"2405.04434", "none", trainedSo+"; one row of latent and rotated features a token", everywhere,
			"masks, position modules, scores, frequencies of package rope; paged keys", func(s ModelSizes) any {
				return MLA{Heads: s.Heads, Latent: 4 * s.HeadDim, Rope: s.HeadDim / 2, Nope: s.HeadDim, Value: s.HeadDim}
			}),
		of(Diff{}.Name(), arxiv+"2410.05258", "none", trainedSo, "cpu", "masks, position modules, scores, frequencies of package rope; paged keys", func(s ModelSizes) any {
			return Diff{Lambda: DiffLambdaInit(s.Layers / 2)}
		}),
		of(Dilated{}.Name(), arxiv+"2307.02486", "none", trainedSo, "cpu", "soft cap, frequencies of package rope; contiguous keys", func(s ModelSizes) any {
			return Dilated{Segments: []int{s.Trained / 16 * 4, s.Trained / 16 * 16}, Rates: []int{1, 4}}
		}),
		of(CoPE{}.Name(), arxiv+"2405.18719", "weak", trainedSo, "cpu", "scores but relative bias; paged and contiguous keys; no rotation; decode, and prefill query by query", func(s ModelSizes) any {
			return CoPE{Embedding: tensor.New(tensor.F32, 64, int64(s.HeadDim))}
		}),
		of(PCW{}.Name(), arxiv+"2212.10947", "strong", "the lengths of contexts", everywhere, ofPosition, func(s ModelSizes) any { return PCW{Contexts: []int{s.Trained / 2, s.Trained / 2}} }),
		of(APE{}.Name(), arxiv+"2502.05431", "strong", "the lengths of contexts", "cpu", ofPosition+"; no sink logit", func(s ModelSizes) any {
			return APE{PCW: PCW{Contexts: []int{s.Trained / 2, s.Trained / 2}}, Temperature: 0.9, Gain: 0.9}
		}),
	}
}

// module is a selector in the table of all.
func (s SelectorInfo) module() Module {
	out := Module{
		Name: s.Name, Paper: strings.Replace(s.Paper, "arXiv:", arxiv, 1), Kind: "selector", Claim: "none",
		Needs: s.Kind + "; " + s.Needs, Backends: everywhere, Composes: "causal masks, position modules, scores, frequencies of package rope; plain pages",
	}
	if s.Name != (Quest{}).Info().Name { // they work in host memory
		out.Backends = "cpu"
	}
	prefill, blocks := newPrefillSelectors[s.Name], []string{"quest", "infllm", "longheads"}
	if prefill == nil && !slices.Contains(blocks, s.Name) { // they list keys, not blocks
		out.Composes = "KeyAttention: position modules, SoftCap, frequencies of package rope; plain pages"
	}
	switch s.Name {
	case "infllm", "longheads", "reattention":
		out.Claim = "strong"
	case "nsa":
		out.Composes = "plain pages of unrotated or PostRoPE keys"
	case MagicPIG{}.Info().Name, RetrievalAttention{}.Info().Name:
		out.Composes = "soft cap; keys stored PostRoPE, plain pages or contiguous"
	}
	if out.New = newSelectors[s.Name]; prefill != nil {
		out.New = prefill
	}
	return out
}

// newSelectors make selectors with their papers' settings, or near them.
var newSelectors = map[string]func(ModelSizes) any{
	"quest":     func(ModelSizes) any { return Quest{Pages: 64, Sinks: 1, Recent: 1} },
	"sparq":     func(s ModelSizes) any { return SparQ{Rank: (s.HeadDim + 3) / 4, Keys: 128, Recent: 32} },
	"loki":      func(s ModelSizes) any { return Loki{Keys: s.Trained / 4, Recent: 1} },
	"infllm":    func(ModelSizes) any { return InfLLM{Blocks: 16, Init: 1, Local: 32, Representatives: 4} },
	"longheads": func(s ModelSizes) any { return LongHeads{Chunks: max(s.Trained/256, 4)} },
	"pqcache": func(s ModelSizes) any {
		return PQCache{Keys: max(s.Trained/5, 2), Sinks: 1, Recent: 1, Parts: 2 - s.HeadDim%2, Codes: 64}
	},
	"reattention":          func(s ModelSizes) any { return ReAttention{Top: 4, Span: 32, Global: 32, Local: s.Trained / 2} },
	"squeezedattention":    func(ModelSizes) any { return SqueezedAttention{Threshold: 1e-4} },
	"nsa":                  func(ModelSizes) any { return NSA{Blocks: 16, Sinks: 1, Recent: 2, Window: 512} },
	MagicPIG{}.Info().Name: func(ModelSizes) any { return MagicPIG{Bits: 10, Tables: 150, Sinks: 4, Window: 64} },
	RetrievalAttention{}.Info().Name: func(ModelSizes) any {
		return RetrievalAttention{TopK: 100, Beam: 128, Degree: 8, Neighbours: 32, Sinks: 128, Window: 512}
	},
	"doublesparse": func(s ModelSizes) any {
		d := DoubleSparse{Keys: max(s.Trained/16, 1), Recent: 1}
		for range s.KVHeads { // to be replaced by those of a model
			var list []int32
			for c := 0; c < s.HeadDim; c += 16 {
				list = append(list, int32(c))
			}
			d.Channels = append(d.Channels, list)
		}
		return d
	},
}
