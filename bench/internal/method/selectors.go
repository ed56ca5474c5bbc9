package method

import (
	"fmt"
	"strings"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/selected"
	"github.com/longctx/longctx/rope"
)

// selectorPage is how many keys selectors have in a page.
const selectorPage = 8

// selectorMethods are the selectors: those with positions of their own, and the others
// with the frequencies of yarn.
func selectorMethods() []Method {
	var out []Method
	papers := map[string]string{}
	for _, s := range attention.Selectors() {
		papers[s.Name] = strings.TrimPrefix(s.Paper, "arXiv:")
	}
	of := func(s selected.Selector, module, title, summary, claim string) {
		if notApplying[module] != "" {
			return
		}
		out = append(out, Method{
			Name: s.Name, Title: title, Module: module, Claim: claim, Summary: summary,
			Paper: "arXiv " + papers[module], URL: "https://arxiv.org/abs/" + papers[module],
			build: func(x *setting) Setup { return x.selected(s, claim == "strong") },
		})
	}
	own := map[string]string{
		"infllm":      "the last L/2 keys, and of the rest blocks of as many at one distance, by representative keys",
		"longheads":   "each head has chunks of its own, side by side within L, by their representations",
		"reattention": "the last L/2 keys and those around the best matches without distance, side by side within L",
	}
	for _, s := range selected.Beyond() {
		of(s, s.Name, s.Name, own[s.Name], "strong")
	}
	for _, s := range selected.Selectors() {
		module := s.Name
		if strings.HasPrefix(module, "minference-") {
			module = "minference"
		}
		if module = strings.TrimSuffix(module, "-mean"); own[module] == "" {
			which := "the last L tokens see"
			if s.Prefill {
				which = "all tokens see"
			}
			of(s, module, s.Name+" with YaRN", "yarn; "+which+" keys that the selector finds, L in the mean or a share of weights alike", "none")
		}
	}
	return out
}

// selected is attention by a selector: at its own positions with the trained
// frequencies, or with those of yarn to a budget of the trained length.
func (s *setting) selected(by selected.Selector, own bool) Setup {
	r := &selected.Runner{Config: s.config, Page: selectorPage, Share: 1 / s.s, Judged: s.trained, Selector: &by}
	if s.config.Context < 4*selectorPage {
		s.err = fmt.Errorf("trained length %d, want at least %d", s.config.Context, 4*selectorPage)
		return Setup{}
	}
	var rotary attention.Rotary = rope.Default{Base: s.base}
	if !own {
		rotary = rope.YaRN{Base: s.base, Factor: s.s, OriginalLength: s.trained}
	}
	if r.Rotation, s.err = rotary.Rotation(s.length); s.err != nil {
		return Setup{}
	}
	return Setup{Attending: model.Attending{Own: r.Own}, Params: fmt.Sprintf("page=%d keys=%.4g%%", r.Page, 100*r.Share), sees: s.length}
}

// notApplying says of modules of package attention why extrapolate has no method of
// them.
var notApplying = map[string]string{
	"kerple": "a model trained so", "fire": "a model trained so", "forgetting": "a model trained so", "bipe": "a model trained so",
	"cla": "a model trained so", "yoco": "a model trained so", "lckv": "a model trained so", "mla": "a model trained so", "diff": "a model trained so",
	"longnet": "a model trained so", "cope": "a model trained so", "nsa": "a model trained so: its compressed keys are learned",
	"hirope": "the ends of functions in a text, which a method does not know",
	"pcw":    "several contexts beside each other; a text that is read on is one",
	"ape":    "several contexts beside each other; a text that is read on is one",

	"tinybert": "a student and a teacher: it is a loss of training",
}

// WhyNot says what a module of package attention wants that extrapolate does not have, "" if
// there are methods of it.
func WhyNot(module string) string { return notApplying[module] }
