package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSelectRecallsAllWhereAllIsSeen(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-json -keys 200,513 -page 16 -pages 33 -repeats 1")); err != nil {
		t.Fatal(err)
	}
	var got []selectResult
	names := selectorNames()
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 2*len(names) {
		t.Fatalf("%v: %s", err, &out)
	}
	for i, r := range got {
		if r.Selector != names[i%len(names)] {
			t.Errorf("%+v is line %d", r, i)
		}
		mass, least := 0.0, 0.0
		switch r.Selector {
		case "magicpig": // finds the planted keys
			if r.Mass < 0.9 || r.Mass > 1.00001 || r.Error > 0.3 {
				t.Errorf("%+v, want a mass of 0.9 to 1", r)
			}
			continue
		case "retrieval": // in two passes
			mass, least = 1e-5, 1e-5
		case "sparq-mean": // its shares are rounded
			least = 1e-6
		}
		if math.Abs(r.Mass-1) > mass || r.Error > least {
			t.Errorf("%+v, want all mass and no error", r)
		}
	}
}

func TestSelectOfOne(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-keys 300 -pages 4 -repeats 1 -selectors magicpig")); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "magicpig") || strings.Contains(s, "quest") || strings.Contains(s, "retrieval") {
		t.Error(s)
	}
}

func TestSelectRefusesBadFlags(t *testing.T) {
	for _, args := range []string{"-keys 3", "-keys x", "-keys 9999999999", "-page 0", "-pages 0", "-pages 1", "-repeats 0", "-selectors none", "-queries -1", "-keys 20 -queries 21"} {
		var out, errs bytes.Buffer
		if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields(args)); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}

func TestSelectOfPrefillFindsWhatIsPlanted(t *testing.T) {
	var out, errs bytes.Buffer
	if err := runSelect(context.Background(), streams{&out, &errs}, strings.Fields("-json -keys 2048 -page 16 -queries 64 -repeats 1")); err != nil {
		t.Fatal(err)
	}
	var got []selectResult
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got) != 9 {
		t.Fatalf("%v: %s", err, &out)
	}
	for _, r := range got {
		if r.Mass > 1.00001 || r.Selector != "minference a-shape" && r.Mass < 0.8 {
			t.Errorf("%+v, want a mass of 0.8 to 1", r)
		}
	}
}

func TestSelectInTheModel(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	args := "-model -lengths 128,200 -budgets 50,20 -windows 1 -trials 10 -selectors quest,magicpig,moba -out " + dir
	if err := runSelect(t.Context(), streams{&out, &errs}, strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "select-model.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got modelResults
	if err := json.Unmarshal(data, &got); err != nil || got.Partial || len(got.Lines) != 14 {
		t.Fatalf("%v: %s", err, data)
	}
	for i, x := range got.Lines {
		if (x.Selector == "dense") != (i%7 == 0) || !strings.Contains(out.String(), x.Selector) || !(x.BitsPerByte > 1 && x.BitsPerByte < 4) || math.Abs(math.Log2(x.Perplexity)-x.BitsPerByte) > 1e-9 {
			t.Errorf("%+v is line %d", x, i)
		}
		if x.Selector == "dense" {
			if x.Mass != 1 || x.Seen != 1 || x.Error != 0 || x.Recall < 0.5 {
				t.Errorf("%+v", x)
			}
		} else if !(x.Seen < 0.95 && x.Mass > x.Seen && x.Mass < 1 && x.Error > 0) { // more than chance
			t.Errorf("%+v", x)
		}
	}
	for _, name := range []string{"select-model.csv", "select-model-bits.png", "select-model-recall.png"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"-selectors none", "-budgets 0", "-budgets x", "-method rerope", "-method rope+logn", "-method window", "-method yarn,ntk", "-lengths 10", "-page 0", "-trials 7", "-windows 0", "-workers -1", "-weights none"} {
		if err := runSelect(t.Context(), streams{&out, &errs}, strings.Fields("-model -out "+dir+" "+bad)); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
