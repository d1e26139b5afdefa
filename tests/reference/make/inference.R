# Reference values of inference: degrees of freedom, robust covariances, tests, intervals, deletion, R squared.
#
#   Rscript inference.R CSV_FOLDER OUT_FOLDER
#
# CSV_FOLDER holds hsb.csv, sleepstudy.csv, dyestuff2.csv and exam.csv: the Parquet files of the tests, written out unchanged.
# Each number is taken twice where that is possible: from the package ("lmertest", "pbkrtest", "clubsandwich", ...), whose optimiser stops
# within about 1e-6 of the optimum and which differentiates numerically, and under "exact" from the formulas, with analytic derivatives, dense
# matrices group by group, and Newton steps until the score vanishes.
suppressMessages({library(lme4); library(lmerTest); library(pbkrtest); library(clubSandwich); library(performance); library(jsonlite)})
args <- commandArgs(TRUE); csv <- args[1]; out <- args[2]; only <- args[-(1:2)]
want <- function(name) length(only) == 0 || name %in% only
rd <- function(n) read.csv(file.path(csv, paste0(n, ".csv")), stringsAsFactors = TRUE)
hsb <- rd("hsb"); sleep <- rd("sleepstudy"); dye2 <- rd("dyestuff2"); exam <- rd("exam")
source(file.path(dirname(sub("--file=", "", grep("--file=", commandArgs(), value = TRUE))), "formulas.R"))
CTRL <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-9, maxfun = 1e5))
SOFT <- paste(c(R.version$language, paste(R.version$major, R.version$minor, sep = "."),
  sapply(c("lme4", "lmerTest", "pbkrtest", "clubSandwich", "performance", "insight"), function(p) paste(p, packageVersion(p)))), collapse = " ")
save1 <- function(name, x) {
  write(toJSON(x, digits = I(12), auto_unbox = TRUE, na = "null", null = "null", pretty = TRUE), file.path(out, paste0("inference_", name, ".json")))
  cat(name, "ok\n")
}

theta_of <- function(m) c(vech(as.matrix(VarCorr(m)[[1]])), sigma(m)^2)
groups_of <- function(m) split_rows(getME(m, "y"), mat(getME(m, "X")), mat(getME(m, "mmList")[[1]]), getME(m, "flist")[[1]], weights(m))

# ---- one model ------------------------------------------------------------------------------------------------------------------------------
fit_lmer <- function(formula, data, reml, ...) eval(bquote(lmerTest::lmer(.(formula), data = data, REML = .(reml), control = CTRL, ...)))
contest <- function(m, L2, L1, ddf) { j <- contestMD(m, L2, ddf = ddf); o <- contest1D(m, L1, ddf = ddf)
  list(joint = list(F = j$`F value`, NumDF = j$NumDF, DenDF = j$DenDF, p = j$`Pr(>F)`), contrast = list(estimate = o$Estimate, se = o$`Std. Error`, df = o$df, statistic = o$`t value`, p = o$`Pr(>|t|)`)) }
club <- function(m, C, ...) {
  x <- list(); for (t in c("CR0", "CR1", "CR2")) x[[paste0("vcov_", t)]] <- mat(vcovCR(m, type = t, ...))
  for (t in c("CR1", "CR2")) { v <- vcovCR(m, type = t, ...); ct <- coef_test(m, vcov = v, test = "Satterthwaite"); ci <- conf_int(m, vcov = v, level = 0.95); w <- Wald_test(m, constraints = C, vcov = v, test = "HTZ")
    x[[paste0("coef_test_", t)]] <- list(se = ct$SE, t = ct$tstat, df = ct$df_Satt %||% ct$df, p = ct$p_Satt)
    x[[paste0("conf_int_", t)]] <- list(lower = ci$CI_L, upper = ci$CI_U)
    x[[paste0("HTZ_", t)]] <- list(F = w$Fstat, delta = w$delta, df_num = w$df_num, df_denom = w$df_denom, p = w$p_val) }
  x }
nakagawa <- function(m) { X <- getME(m, "X"); Z <- mat(getME(m, "mmList")[[1]]); Tm <- as.matrix(VarCorr(m)[[1]]); f <- drop(X %*% fixef(m))
  r <- mean(rowSums((Z %*% Tm) * Z)); s2 <- sigma(m)^2; n <- length(f); by <- function(v) list(fixed = v, random = r, residual = s2, marginal = v / (v + r + s2), conditional = (v + r) / (v + r + s2))
  pf <- suppressWarnings(tryCatch(performance::r2_nakagawa(m), error = function(e) NULL))
  list(n_minus_1 = by(var(f)), n = by(var(f) * (n - 1) / n), performance = if (is.list(pf)) list(marginal = unname(pf$R2_marginal), conditional = unname(pf$R2_conditional)) else NULL) }
model <- function(name, data_name, data, formula, reml, L2, L1, prep = "", extra = NULL) {
  if (!want(name)) return(invisible())
  m <- fit_lmer(formula, data, reml); m0 <- as(m, "lmerMod"); m0@call$data <- quote(data)
  s <- optimum(groups_of(m0), theta_of(m0), reml)
  x <- list(data = data_name, prep = prep, formula = deparse(formula, width.cutoff = 500L)[1], method = ifelse(reml, "REML", "ML"), software = SOFT, term = names(fixef(m)),
    hypothesis = list(note = "joint: L b = 0; contrast: l'b", joint = L2, contrast = L1), estimate = unname(fixef(m)), se = unname(sqrt(diag(as.matrix(vcov(m0))))), deviance = -2 * as.numeric(logLik(m0)))
  x$satterthwaite_df <- unname(coef(summary(m, ddf = "Satterthwaite"))[, "df"])
  x$lmertest_satterthwaite <- contest(m, L2, L1, "Satterthwaite")
  if (reml) { k <- coef(summary(m, ddf = "Kenward-Roger")); x$kenward_roger_df <- unname(k[, "df"]); x$kenward_roger_se <- unname(k[, "Std. Error"]); x$pbkrtest_vcovadj <- mat(vcovAdj(m0)); x$lmertest_kenward_roger <- contest(m, L2, L1, "Kenward-Roger") }
  x$clubsandwich <- club(m0, L2); x$r_squared <- nakagawa(m0); x$exact <- exact_block(s, L2, L1, reml)
  if (!is.null(extra)) x <- c(x, extra(m, m0, s, data))
  save1(name, x)
}

# ---- deletion of whole groups ---------------------------------------------------------------------------------------------------------------
deletion <- function(m0, s, data, group, reml) {
  cl <- influence(m0, groups = group, data = data, maxfun = 1e4); full <- groups_of(m0); labels <- rownames(cl[[paste0("fixed.effects[-", group, "]")]])
  p <- length(s$beta); J <- length(full)
  del <- lapply(labels, function(g) optimum(full[names(full) != g], s$theta, reml, 12)); db <- t(sapply(del, function(d) d$beta - s$beta)); db <- matrix(db, ncol = p)
  dist <- apply(db, 1, function(d) drop(d %*% solve(s$Phi, d)))
  list(influence = list(level = labels, note = "dfbeta = b without the group minus b; dfbetas divides by the standard errors without the group; cooks_lme4 = (J-p)/(J p) d' Phi^-1 d with J groups, cooks = d' Phi^-1 d / p, Phi of the full data",
    lme4 = list(dfbeta = mat(dfbeta(cl)), dfbetas = mat(dfbetas(cl)), cooks_distance = unname(cooks.distance(cl))),
    exact = list(dfbeta = db, dfbetas = db / t(sapply(del, function(d) sqrt(diag(d$Phi)))), cooks_lme4 = (J - p) / (J * p) * dist, cooks = dist / p,
      covratio = sapply(del, function(d) det(d$Phi) / det(s$Phi)), theta = t(sapply(del, function(d) d$theta)), max_score = max(sapply(del, function(d) max(abs(d$score)))))))
}

# ---- likelihood profiles --------------------------------------------------------------------------------------------------------------------
# ML deviance from moments; par = standard deviations of the random effects, correlation (if correlated), sigma; `fix` = (coefficient, value)
ml_deviance <- function(groups, correlated) {
  mom <- lapply(groups, function(g) { A <- cbind(g$X, g$y); list(n = length(g$y), AA = crossprod(A), ZA = crossprod(g$Z, A), ZZ = crossprod(g$Z)) })
  q <- ncol(groups[[1]]$Z); p <- ncol(groups[[1]]$X)
  function(par, fix = NULL) { sd <- par[1:q]; s2 <- par[length(par)]^2; Tm <- diag(sd^2, q); if (correlated && q == 2) Tm[1, 2] <- Tm[2, 1] <- par[3] * sd[1] * sd[2]
    logdet <- 0; M <- matrix(0, p + 1, p + 1)
    for (g in mom) { B <- diag(q) + Tm %*% g$ZZ / s2; logdet <- logdet + g$n * log(s2) + log(det(B)); M <- M + (g$AA - t(g$ZA) %*% solve(B, Tm %*% g$ZA) / s2) / s2 }
    N <- sum(sapply(mom, `[[`, "n"))
    if (!is.null(fix)) { k <- fix[1]; M[, p + 1] <- M[, p + 1] - M[, k] * fix[2]; M[p + 1, ] <- M[p + 1, ] - M[k, ] * fix[2]; M <- M[-k, -k, drop = FALSE] }
    r <- nrow(M); quad <- if (r == 1) M[1, 1] else M[r, r] - drop(M[r, -r] %*% solve(M[-r, -r, drop = FALSE], M[-r, r])); N * log(2 * pi) + logdet + quad }
}
profile_exact <- function(m0, correlated, names, start) {
  Zfull <- do.call(cbind, lapply(getME(m0, "mmList"), mat)); groups <- split_rows(getME(m0, "y"), mat(getME(m0, "X")), Zfull, getME(m0, "flist")[[1]])
  f <- ml_deviance(groups, correlated); n <- length(start); q <- ncol(Zfull); lo <- c(rep(0, q), if (correlated && q == 2) -0.999999, 1e-6); hi <- c(rep(Inf, q), if (correlated && q == 2) 0.999999, Inf)
  best <- function(g, x, l, h) { for (i in 1:3) { o <- nlminb(x, g, lower = l, upper = h, scale = 1 / pmax(abs(start[seq_along(x)]), 0.1), control = list(rel.tol = 1e-14, x.tol = 1e-12, iter.max = 1000, eval.max = 2000)); x <- o$par }; o }
  top <- best(f, start, lo, hi); cut <- top$objective + qchisq(0.95, 1)
  at <- function(k) { warm <- top$par[-k]; function(v) { if (n == 1) return(f(v) - cut); o <- best(function(z) f(append(z, v, k - 1)), warm, lo[-k], hi[-k]); o$objective - cut } }
  low <- up <- rep(NA, n)
  for (k in 1:n) { g <- at(k); x0 <- top$par[k]; step <- max(abs(x0) * 0.2, 0.05)
    b <- x0; while (b > lo[k] && g(b) < 0) b <- max(b - step, lo[k]); low[k] <- if (g(b) < 0) lo[k] else uniroot(g, c(b, x0), tol = 1e-10)$root
    b <- x0; while (b < hi[k] && g(b) < 0) b <- min(b + step, hi[k]); up[k] <- if (g(b) < 0) hi[k] else uniroot(g, c(x0, b), tol = 1e-10)$root }
  # standard deviations start above 0, where the deviance is level in them: a search from there does not see that they grow as b moves away
  off <- top$par; off[1:q] <- pmax(off[1:q], 0.1 * sd(getME(m0, "y"))); b <- fixef(m0); se <- sqrt(diag(as.matrix(vcov(m0)))); fl <- fu <- b
  for (k in seq_along(b)) { g <- function(v) best(function(z) f(z, c(k, v)), off, lo, hi)$objective - cut
    fl[k] <- uniroot(g, c(b[k] - 6 * se[k], b[k]), tol = 1e-10)$root; fu[k] <- uniroot(g, c(b[k], b[k] + 6 * se[k]), tol = 1e-10)$root }
  list(deviance = top$objective, parm = c(names, names(b)), estimate = c(top$par, unname(b)), lower = unname(c(low, fl)), upper = unname(c(up, fu)))
}
profile_model <- function(name, data_name, data, formula, correlated, names, start, prep = "") {
  if (!want(name)) return(invisible())
  m0 <- as(fit_lmer(formula, data, FALSE), "lmerMod"); m0@call$data <- quote(data)
  pr <- tryCatch({ p <- suppressWarnings(confint(m0, method = "profile", level = 0.95, oldNames = FALSE, quiet = TRUE)); list(parm = rownames(p), lower = unname(p[, 1]), upper = unname(p[, 2])) }, error = function(e) list(error = conditionMessage(e)))
  vc <- as.data.frame(VarCorr(m0))
  save1(name, list(data = data_name, prep = prep, formula = deparse(formula, width.cutoff = 500L)[1], method = "ML", software = SOFT, deviance = -2 * as.numeric(logLik(m0)), term = I(names(fixef(m0))), estimate = I(unname(fixef(m0))), se = I(unname(sqrt(diag(as.matrix(vcov(m0)))))),
    varcomp = list(group = vc$grp, var1 = vc$var1, var2 = vc$var2, vcov = vc$vcov, sdcor = vc$sdcor), lme4_profile = pr,
    exact_profile = c(list(note = "limits where the ML deviance, minimised over everything else, is qchisq(0.95, 1) above its minimum; 0 where that is not reached before the bound"), profile_exact(m0, correlated, names, start))))
}
# fit_lmer leaves `data` in the call: profiles and refits look it up here
data <- NULL
lrt <- function(a, b) { t <- suppressMessages(anova(a, b, refit = FALSE)); list(smaller = deparse(formula(b), width.cutoff = 500L)[1], method = ifelse(isREML(a), "REML, refit = FALSE", "ML"), chisq = t$Chisq[2], df = t$Df[2], p = t$`Pr(>Chisq)`[2]) }

# ---- what to compute ------------------------------------------------------------------------------------------------------------------------
rows <- function(p, ...) t(sapply(c(...), function(k) replace(rep(0, p), k, 1)))
PREP <- "cses = ses minus the school mean of ses"
fA <- mathach ~ meanses * cses + sector * cses + (cses | school); fA0 <- mathach ~ meanses * cses + sector * cses + (1 | school)
anovaA <- function(reml) function(m, m0, s, d) list(lr_test = lrt(m0, as(fit_lmer(fA0, d, reml), "lmerMod")))
data <- hsb
model("hsb_full_reml", "hsb", hsb, fA, TRUE, rows(6, 4, 6), c(0, 0, 1, 0, 0, 1), PREP, anovaA(TRUE))
model("hsb_full_ml", "hsb", hsb, fA, FALSE, rows(6, 4, 6), c(0, 0, 1, 0, 0, 1), PREP, anovaA(FALSE))
model("hsb_means_reml", "hsb", hsb, mathach ~ meanses + (1 | school), TRUE, rows(2, 1, 2), c(1, 1), "", function(m, m0, s, d) deletion(m0, s, d, "school", TRUE))
data <- exam
model("exam_reml", "exam", exam, normexam ~ standLRT + sex + schgend + (standLRT | school), TRUE, rows(5, 4, 5), c(0, 0, 0, 1, -1))
data <- sleep
model("sleepstudy_reml", "sleepstudy", sleep, Reaction ~ Days + (Days | Subject), TRUE, rows(2, 1, 2), c(1, 9), "", function(m, m0, s, d) {
  pr <- suppressWarnings(confint(m0, method = "profile", oldNames = FALSE, quiet = TRUE))
  stat <- function(f) { v <- as.data.frame(VarCorr(f)); c(fixef(f), sd_intercept = v$sdcor[1], sd_days = v$sdcor[2], correlation = v$sdcor[3], sigma = sigma(f)) }
  bt <- suppressMessages(suppressWarnings(bootMer(m0, stat, nsim = 1000, seed = 1))); bt$t <- bt$t[stats::complete.cases(bt$t), ]
  c(deletion(m0, s, d, "Subject", TRUE), list(lr_test = lrt(m0, as(fit_lmer(Reaction ~ Days + (1 | Subject), d, TRUE), "lmerMod")),
    lme4_profile = list(note = "of the model refitted by ML, as confint does", parm = rownames(pr), lower = unname(pr[, 1]), upper = unname(pr[, 2])),
    parametric_bootstrap = list(note = "bootMer, seed 1, percentile limits; a coarse check only", nsim = nrow(bt$t), parm = names(bt$t0), estimate = unname(bt$t0), mean = unname(colMeans(bt$t)), sd = unname(apply(bt$t, 2, sd)), lower = unname(apply(bt$t, 2, quantile, 0.025)), upper = unname(apply(bt$t, 2, quantile, 0.975)))) ) })
profile_model("sleepstudy_ml", "sleepstudy", sleep, Reaction ~ Days + (Days | Subject), TRUE, c("sd_(Intercept)", "sd_Days", "cor_Days.(Intercept)", "sigma"), c(23.8, 5.7, 0.08, 25.6))
profile_model("sleepstudy_diag_ml", "sleepstudy", sleep, Reaction ~ Days + (Days || Subject), FALSE, c("sd_(Intercept)", "sd_Days", "sigma"), c(24.2, 5.8, 25.6))
data <- dye2; profile_model("dyestuff2_ml", "dyestuff2", dye2, Yield ~ 1 + (1 | Batch), FALSE, c("sd_(Intercept)", "sigma"), c(0.1, 3.7))
data <- hsb; profile_model("hsb_means_ml", "hsb", hsb, mathach ~ meanses + (1 | school), FALSE, c("sd_(Intercept)", "sigma"), c(1.61, 6.26))

# precision weights: Var(e) = sigma2 / w. The packages see the same model with every row times sqrt(w), its intercept included.
if (want("hsb_weighted_reml")) {
  d <- hsb; d$w <- 1 + d$minority + 0.5 * d$female; k <- sqrt(d$w); data <- d; L2 <- rows(3, 2, 3); L1 <- c(1, 1, 0)
  m <- lmerTest::lmer(mathach ~ sector + cses + (cses | school), data = data, weights = w, REML = TRUE, control = CTRL); m0 <- as(m, "lmerMod")
  d$ys <- d$mathach * k; d$one <- k; d$sectors <- d$sector * k; d$csess <- d$cses * k; data <- d
  t1 <- lmerTest::lmer(ys ~ 0 + one + sectors + csess + (0 + one + csess | school), data = data, REML = TRUE, control = CTRL); t0 <- as(t1, "lmerMod")
  s <- optimum(groups_of(m0), theta_of(m0), TRUE); st <- optimum(groups_of(t0), theta_of(t0), TRUE); vc <- as.data.frame(VarCorr(m0))
  x <- list(data = "hsb", prep = paste0(PREP, "; w = 1 + minority + 0.5 female"), formula = "mathach ~ sector + cses + (cses | school)", weights = "Var(e) = sigma2 / w", method = "REML", software = SOFT, term = names(fixef(m)),
    hypothesis = list(note = "joint: L b = 0; contrast: l'b", joint = L2, contrast = L1), estimate = unname(fixef(m)), se = unname(sqrt(diag(as.matrix(vcov(m0))))), deviance = -2 * as.numeric(logLik(m0)), sum_log_w = sum(log(d$w)),
    varcomp = list(group = vc$grp, var1 = vc$var1, var2 = vc$var2, vcov = vc$vcov, sdcor = vc$sdcor), satterthwaite_df = unname(coef(summary(m, ddf = "Satterthwaite"))[, "df"]), lmertest_satterthwaite = contest(m, L2, L1, "Satterthwaite"),
    pbkrtest_ignoring_weights = list(note = "what lmerTest and pbkrtest print for lmer(weights = w); compare with exact", df = tryCatch(unname(coef(summary(m, ddf = "Kenward-Roger"))[, "df"]), error = function(e) conditionMessage(e)), vcovadj = tryCatch(mat(vcovAdj(m0)), error = function(e) conditionMessage(e))))
  ks <- coef(summary(t1, ddf = "Kenward-Roger"))
  x$rows_times_sqrt_w <- list(note = "the same model, rows times sqrt(w): all but CR2 and its df must equal the weighted model's", deviance = -2 * as.numeric(logLik(t0)), satterthwaite_df = unname(coef(summary(t1, ddf = "Satterthwaite"))[, "df"]), lmertest_satterthwaite = contest(t1, L2, L1, "Satterthwaite"),
    kenward_roger_df = unname(ks[, "df"]), kenward_roger_se = unname(ks[, "Std. Error"]), pbkrtest_vcovadj = mat(vcovAdj(t0)), lmertest_kenward_roger = contest(t1, L2, L1, "Kenward-Roger"), clubsandwich = club(t0, L2), exact = exact_block(st, L2, L1, TRUE))
  x$exact <- exact_block(s, L2, L1, TRUE); save1("hsb_weighted_reml", x)
}

# ordinary least squares, within and between regressions
if (want("hsb_ols")) {
  o <- lm(mathach ~ meanses * cses + sector * cses, data = hsb); C <- rows(6, 4, 6); cl <- list(); for (t in c("CR0", "CR1", "CR1S", "CR2")) cl[[paste0("vcov_", t)]] <- mat(vcovCR(o, cluster = hsb$school, type = t))
  ct <- coef_test(o, vcov = "CR2", cluster = hsb$school, test = "Satterthwaite"); w <- Wald_test(o, constraints = C, vcov = "CR2", cluster = hsb$school, test = "HTZ")
  X <- model.matrix(o); B <- solve(crossprod(X)); u <- rowsum(X * resid(o), hsb$school); cl$manual_CR0 <- mat(B %*% crossprod(u) %*% B)
  cl$coef_test_CR2 <- list(se = ct$SE, t = ct$tstat, df = ct$df_Satt %||% ct$df, p = ct$p_Satt); cl$HTZ_CR2 <- list(F = w$Fstat, delta = w$delta, df_num = w$df_num, df_denom = w$df_denom, p = w$p_val)
  tab <- function(f, keep) { s <- summary(f)$coefficients[keep, , drop = FALSE]; list(term = rownames(s), estimate = unname(s[, 1]), se = unname(s[, 2]), sigma2 = sigma(f)^2, df_residual = f$df.residual) }
  mean_of <- function(v) as.vector(tapply(v, hsb$school, mean)); b <- data.frame(mathach = mean_of(hsb$mathach), ses = mean_of(hsb$ses), n = as.vector(table(hsb$school)))
  wi <- lm(mathach ~ ses + factor(school), data = hsb)
  wl <- lmList(mathach ~ cses | school, data = hsb, pool = FALSE)
  save1("hsb_ols", list(data = "hsb", prep = PREP, software = SOFT, pooled = c(list(formula = "mathach ~ meanses * cses + sector * cses", hypothesis = list(joint = C)), tab(o, 1:6), list(vcov = mat(vcov(o)), clubsandwich_by_school = cl)),
    within = c(list(formula = "mathach ~ ses + factor(school)"), tab(wi, "ses")),
    between = c(list(formula = "school mean of mathach ~ school mean of ses (means of the students in the data, not the published meanses); schools equal"), tab(lm(mathach ~ ses, data = b), 1:2)),
    between_by_size = c(list(formula = "the same, schools weighted by their students in the data"), tab(lm(mathach ~ ses, data = b, weights = n), 1:2)),
    pooled_ses = c(list(formula = "mathach ~ ses"), tab(lm(mathach ~ ses, data = hsb), 1:2)),
    by_school = list(formula = "mathach ~ cses in each school", level = names(wl), residual_df = unname(sapply(wl, function(f) f$df.residual)), sigma2 = unname(sapply(wl, function(f) sigma(f)^2)))))
}
