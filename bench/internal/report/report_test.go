package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
)

// synthetic names the methods of a full run in the order of the program.
var syntheticNames = strings.Fields(`rope rope+logn nope pi ntk ntk-fixed ntk-mixed ntk-alpha dynamic-ntk ntk-by-parts
	yarn dynamic-yarn longrope llama3 proportional xpos abf rerope rerope+logn leaky-rerope self-extend dca string
	lm-infinite window streaming-llm alibi`)

// synthetic is a run like a real one: methods that break past the trained
// length, methods that hold, and windows that hold without recall.
func synthetic(names []string, lengths []int, depths int) *Run {
	random := rand.New(rand.NewPCG(1, uint64(len(names))))
	r := &Run{
		Model:   Model{Name: "bytes-3m", Parameters: 3_214_592, TrainedLength: 128, Layers: 6, Heads: 8, KVHeads: 4, HeadDim: 32},
		Text:    "sources of the Go standard library (BSD 3-clause)",
		Lengths: lengths, Seed: 7, Policy: "strict", Sequences: 64, Passkeys: 10 * depths, Seconds: 1234.56,
		Machine:    map[string]string{"cpu": "a CPU", "cores": "2", "go": "go1.26"},
		Parameters: map[string]string{"batch": "8192"},
	}
	for i := range depths {
		r.Depths = append(r.Depths, (float64(i)+0.5)/float64(depths))
	}
	for i, name := range names {
		r.Methods = append(r.Methods, Method{
			Name: name, Title: "Title of " + name, Does: "what " + name + " does in one line, with s = max(1, n/L)",
			Paper: "Author et al., A paper", URL: "https://arxiv.org/abs/2104.09864", Detail: fmt.Sprintf("s=%d", i+1), Claimed: []string{"strong", "weak", "none"}[i%3],
		})
		window := strings.Contains(name, "window") || strings.Contains(name, "llm") || name == "lm-infinite"
		holds := strings.Contains(name, "rerope") || name == "self-extend" || name == "dca"
		slope := 0.15 + random.Float64()
		for _, n := range lengths {
			over := math.Max(0, math.Log2(float64(n)/128))
			result := Result{Method: name, Length: n, Bytes: 8192, Seconds: 0.5 * float64(n) / 128}
			noise := 0.01 * random.NormFloat64()
			switch {
			case window:
				result.BitsPerByte = 2.06 - 0.01*over + noise
			case holds:
				result.BitsPerByte = 2.08 + 0.03*over*slope + noise
			default:
				result.BitsPerByte = min(2.05+slope*over*over*0.6+noise, 7.5)
			}
			for _, d := range r.Depths {
				chance := 0.98 - over*slope*0.35
				if holds {
					chance = 0.98 - 0.08*over*slope - 0.2*d*over*slope
				}
				if window && (1-d)*float64(n) > 120 {
					chance = 0
				}
				depth := Depth{Depth: d, Total: 10}
				for range depth.Total {
					if random.Float64() < chance {
						depth.Correct++
					}
				}
				result.ByDepth = append(result.ByDepth, depth)
				result.Recall += float64(depth.Correct) / float64(depth.Total) / float64(depths)
			}
			result.Digits = math.Sqrt(result.Recall)
			r.Results = append(r.Results, result)
		}
	}
	return r
}
