package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/kvcache/codec"
	"github.com/longctx/longctx/kvcache/policy"
)

func cacheRun(t *testing.T, args ...string) (*cacheResults, string) {
	t.Helper()
	dir := t.TempDir()
	var out, errs bytes.Buffer
	if err := runCache(t.Context(), streams{&out, &errs}, append([]string{"-out", dir}, args...)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "cache.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(cacheResults)
	if err := json.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "cache.html"))
	if err != nil || !strings.Contains(string(page), "<h2>") {
		t.Errorf("the page: %v, %s", err, page)
	}
	return r, out.String()
}

// TestCacheHoldsLess: every policy and every codec is measured or left out by name;
// what holds less takes less memory, and what holds all keeps the quality.
func TestCacheHoldsLess(t *testing.T) {
	r, text := cacheRun(t, "-parts", "quality", "-policies", "all", "-codecs", "f16", "-budgets", "25", "-windows", "1", "-trials", "10")
	rows := map[string]cacheQuality{}
	for _, x := range r.Quality {
		rows[x.Policy] = x
		if math.IsNaN(x.BitsPerByte) || x.BitsPerByte <= 0 || x.Mass <= 0 || x.Mass > 1+1e-6 {
			t.Errorf("%+v", x)
		}
	}
	for _, x := range r.Left {
		rows[x.Name] = cacheQuality{}
		if strings.Contains(x.Name, " over ") {
			t.Errorf("%s: %s", x.Name, x.Why)
		}
	}
	for _, e := range policy.Policies() {
		if _, ok := rows[e.Name]; !ok || !strings.Contains(text, e.Name) {
			t.Errorf("%s is not in the table", e.Name)
		}
	}
	all := rows["none"]
	if half := rows["streaming-llm"]; !(half.Pages > 0 && half.Pages < 0.6*all.Pages) {
		t.Errorf("%v pages of %v", half.Pages, all.Pages)
	}
	if math.Abs(all.Memory-100) > 1e-6 || math.Abs(all.Mass-1) > 1e-6 || all.Recall < 0.8 || all.BitsPerByte > 2.5 {
		t.Errorf("all keys in f16: %+v", all)
	}
	for _, name := range []string{"streaming-llm", "h2o", "snapkv", "tova", "keydiff"} {
		if x := rows[name]; x.Memory > 60 || x.Keys > 90 || x.BitsPerByte < all.BitsPerByte-0.3 {
			t.Errorf("%+v", x)
		}
	}
}

// TestCacheCodes: every codec is measured or left out, those of fewer bits take less
// memory, and none spoils the model.
func TestCacheCodes(t *testing.T) {
	r, _ := cacheRun(t, "-parts", "quality", "-policies", "none", "-codecs", "all", "-windows", "1", "-trials", "10")
	rows := map[string]cacheQuality{}
	for _, x := range r.Quality {
		rows[x.Codec] = x
	}
	left := map[string]bool{}
	for _, x := range r.Left {
		left[x.Name] = true
	}
	for _, e := range codec.Codecs() {
		x, ok := rows[e.Name]
		if !ok && !left[e.Name] {
			t.Errorf("%s is not in the table", e.Name)
		}
		most := 0.25
		if e.Bases != nil && e.Name != "hadamard" {
			most = 0.6 // half the features, or signs of 32
		}
		if ok && x.BitsPerByte > rows["f16"].BitsPerByte+most {
			t.Errorf("%s: %v bits per byte, f16 has %v", e.Name, x.BitsPerByte, rows["f16"].BitsPerByte)
		}
	}
	if f, i8, i4 := rows["f16"].Memory, rows["int8"].Memory, rows["int4"].Memory; !(i4 < i8 && i8 < 0.75*f) {
		t.Errorf("memory of f16, int8, int4: %v, %v, %v %%", f, i8, i4)
	}
}

// TestCachePrefixAndSwap: the second turn finds what the first computed, and gives
// what a model without an index gives.
func TestCachePrefixAndSwap(t *testing.T) {
	r, text := cacheRun(t, "-quick", "-parts", "prefix,swap")
	if len(r.Prefix) != 2 || r.Prefix[0].HitRate < 0.5 || r.Prefix[1].HitRate < 0.8 || r.Prefix[0].Apart > 1e-4 || r.Prefix[1].Apart > 1e-4 {
		t.Errorf("%+v", r.Prefix)
	}
	if len(r.Cascade) != 2 || !strings.Contains(text, "cascade") {
		t.Errorf("%+v", r.Cascade)
	}
	for _, x := range r.Cascade {
		if !(x.OnePass > 0 && x.Cascade > 0) || x.Apart > 1e-3 {
			t.Errorf("%+v", x)
		}
	}
	for _, tier := range []string{"swap out and in", "export", "host: export and put", "host: get", "disk: export and put", "disk: get"} {
		i := slices.IndexFunc(r.Swap, func(x cacheSwap) bool { return strings.HasPrefix(x.What, tier) })
		if i < 0 || !(r.Swap[i].GBps > 0 && r.Swap[i].RoofGBps > 0 && r.Swap[i].PagesS > 0) || !strings.Contains(text, tier) {
			t.Errorf("%s: %+v", tier, r.Swap)
		}
	}
}

// TestCacheStops: an interrupted run writes what is finished and says so.
func TestCacheStops(t *testing.T) {
	for _, part := range cacheParts {
		dir := t.TempDir()
		ctx, stop := context.WithCancel(t.Context())
		stop()
		status, out, text := call(ctx, "cache", "-quick", "-parts", part, "-out", dir)
		if status != 130 || !strings.Contains(out, "PARTIAL") {
			t.Errorf("%s: status %d: %s%s", part, status, out, text)
		}
		data, err := os.ReadFile(filepath.Join(dir, "cache.json"))
		var r cacheResults
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil || !r.Partial {
			t.Errorf("%s: partial %v, %v", part, r.Partial, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 2 { // cache.json and cache.html
			t.Errorf("%s: %v is left, %v", part, left, err)
		}
	}
}

func TestCacheRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"-parts", "all"}, {"-parts", "swap,prefixes"}, {"-policies", "lru"}, {"-codecs", "zip"}, {"-budgets", "0"}, {"-budgets", "x"}, {"-method", "rerope"}, {"-method", "yarn,ntk"},
		{"-length", "1x,2x"}, {"-page", "0"}, {"-trials", "7"}, {"-workers", "-1"}, {"-windows", "-1"},
	} {
		var out, errs bytes.Buffer
		if err := runCache(t.Context(), streams{&out, &errs}, append([]string{"-quick", "-out", t.TempDir()}, args...)); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	var out, errs bytes.Buffer
	if err := runCache(t.Context(), streams{&out, &errs}, []string{"-list", "-json"}); err != nil || !json.Valid(out.Bytes()) {
		t.Errorf("-list -json: %v, %s", err, out.String())
	}
}
