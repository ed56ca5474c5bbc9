package kerneltest

import (
	"reflect"
	"testing"
)

// A random case is the same each time, and cases are not alike.
func TestRandomCasesRepeat(t *testing.T) {
	kinds := map[string]bool{}
	for seed := range uint64(200) {
		a, b := Random(seed), Random(seed)
		a.expected, b.expected = nil, nil
		if a.Problem == nil {
			kinds[a.Op] = true
			if a.Op != b.Op {
				t.Fatalf("seed %d gives two cases", seed)
			}
			continue
		}
		if a.Name != b.Name || !reflect.DeepEqual(a.Problem.Step, b.Problem.Step) || a.Problem.Config.HeadDim != b.Problem.Config.HeadDim {
			t.Fatalf("seed %d gives two cases", seed)
		}
		c := &a.Problem.Config
		for name, is := range map[string]bool{
			"backward": c.Backward, "paged": c.PageSize > 0, "rotary": c.Rotary != nil, "terms": c.Position != nil, "score": c.Score.SoftCap > 0,
			"special": len(a.Problem.Special) > 0, "tree": a.Problem.Step.Tree.Start != nil, "decode": a.Problem.Step.QueryLens[0] == 1,
			"wide": a.Problem.Step.QueryLens[0] > 100, "positions": a.Problem.Step.KeyPos != nil,
			"columnstats": c.ColumnStats, "columnstats/window": c.ColumnStats && a.Problem.Window > 0,
			"coded": !c.Coding.IsZero(), "levels": c.Coding.Key.Levels, "outliers": c.Coding.Value.Outliers > 0, "rank": c.Coding.Key.Rank > 0,
		} {
			if is {
				kinds[name] = true
			}
		}
	}
	if len(kinds) != 19 {
		t.Errorf("200 random cases have only %v", kinds)
	}
}
